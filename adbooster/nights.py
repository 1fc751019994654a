"""Where a night stands: runs/<run_id>/night.json, written at every change, read by a resumed night and `adbooster status`."""

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from adbooster import lock, tables
from adbooster.lock import Claim
from adbooster.objects import Root, each

State = Literal["waiting", "running", "finished", "failed", "skipped", "stopped", "lost"]


class Step(BaseModel):
    """One step of a night; times are UTC."""

    step: str
    state: State = "waiting"
    """skipped: not due tonight; stopped: the night was told to end"""
    settings: str | None = None
    """hash of the step's settings: with the same ones a finished step is not run again"""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    report: dict[str, Any] | None = None
    error: str | None = None
    why: str | None = None
    """why it was skipped"""


class Night(BaseModel):
    """One night and its steps, in order; times are UTC."""

    run_id: str
    state: State = "running"
    """lost: it says it runs, and another night has the lock, or its own lock has expired or its process is gone"""
    started_at: datetime
    ended_at: datetime | None = None
    resumed: int = 0
    """times it was taken up again"""
    deadline: datetime | None = None
    gpu_hours: float | None = None
    steps: list[Step] = []

    def step(self, name: str) -> Step:
        """The step of this name; a new one at the end if there is none."""
        found = next((s for s in self.steps if s.step == name), None)
        if found is None:
            found = Step(step=name)
            self.steps.append(found)
        return found

    def save(self, root: Root) -> None:
        root.write(_name(self.run_id), (self.model_dump_json(indent=2) + "\n").encode())


class Status(BaseModel):
    """What `adbooster status` tells."""

    root_uri: str
    lock: Claim | None
    """of the night that runs, or of the last one"""
    live_version: int | None
    live_run_id: str | None
    live_since: datetime | None
    nights: list[Night]
    """newest first"""
    progress: dict[str, Any] | None = None
    """of the newest night's running step: job, done, total and a line that says it"""


def read(root: Root, run_id: str) -> Night | None:
    """A night of a run; None if the run was no night."""
    try:
        return Night.model_validate_json(root.read(_name(run_id)))
    except FileNotFoundError:
        return None


def every(root: Root) -> list[Night]:
    """All nights, newest first."""
    found = each(lambda run: read(root, run), root.names("runs"))
    return sorted((n for n in found if n), key=lambda n: n.started_at, reverse=True)


def status(root: Root, run_id: str | None = None, limit: int = 1) -> Status:
    """How the night of a run stands, or the newest nights; nothing is changed."""
    claim = lock.newest(root)
    nights = [n for n in [read(root, run_id)] if n] if run_id else every(root)[:limit]
    for night in nights:
        if night.state == "running" and not _alive(night, claim):
            night.state = "lost"
            for step in night.steps:
                step.state = "lost" if step.state == "running" else step.state
    live = next(iter(tables.history(root, "creatives")), None)
    told = Status(
        root_uri=root.uri,
        lock=claim,
        live_version=live and live.version,
        live_run_id=live and live.run_id,
        live_since=live and live.time,
        nights=nights,
    )
    if nights and nights[0].state == "running":
        told.progress = _progress(root, nights[0])
    return told


def _alive(night: Night, claim: Claim | None) -> bool:
    ours = claim is not None and claim.run_id == night.run_id and not claim.released
    return ours and not claim.gone and claim.expires_at > datetime.now(UTC)


def _progress(root: Root, night: Night) -> dict | None:
    """What the running step last said, if it said anything since it began."""
    running = next((s for s in night.steps if s.state == "running"), None)
    try:
        told = json.loads(root.read(f"runs/{night.run_id}/progress.json"))
    except FileNotFoundError:
        return None
    if running is None or running.started_at is None or told["job"] != running.step:
        return None
    return told if datetime.fromisoformat(told["at"]) >= running.started_at.replace(microsecond=0) else None


def _name(run_id: str) -> str:
    return f"runs/{run_id}/night.json"
