"""The state of a night: runs/<run_id>/night.json, written at every change, read by --resume and `adbooster status`."""

import json
import logging
from datetime import UTC, date, datetime
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from adbooster.storage import lock, tables
from adbooster.storage.lock import Claim
from adbooster.storage.objects import Root, each

log = logging.getLogger(__name__)
State = Literal["waiting", "running", "finished", "failed", "skipped", "stopped", "lost"]


class Step(BaseModel):
    """One step of a night; times are UTC."""

    step: str
    state: State = "waiting"
    """skipped: not due tonight; stopped: the night was interrupted"""
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
    """lost: recorded as running, but another night has the lock, its own lock has expired, or its process is gone"""
    started_at: datetime
    ended_at: datetime | None = None
    resumed: int = 0
    """times it was resumed"""
    deadline: datetime | None = None
    day: date | None = None
    """what brand rules with dates are compared with, the same when the night is resumed"""
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


class CatalogStatus(BaseModel):
    """One catalog of a root, as `adbooster status` of the root lists it."""

    catalog: str
    live_version: int | None
    live_since: datetime | None
    night: str | None
    """run_id of the newest night"""
    state: State | None
    """of that night"""


class Status(BaseModel):
    """What `adbooster status` reports."""

    root_uri: str
    lock: Claim | None
    """of the night that runs, or of the last one"""
    live_version: int | None
    live_run_id: str | None
    live_since: datetime | None
    nights: list[Night]
    """newest first"""
    progress: dict[str, Any] | None = None
    """of the newest night's running step: job, done, total and one line of text"""
    catalogs: list[CatalogStatus] = []
    """of the root, by name"""


def read(root: Root, run_id: str) -> Night | None:
    """A night of a run; None if the run was no night, or its file is not one that this package wrote."""
    try:
        return Night.model_validate_json(root.read(_name(run_id)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except ValidationError as e:
        log.warning("leaving out %s, which is no night's: %s", _name(run_id), e.errors()[0]["msg"])
        return None


def every(root: Root) -> list[Night]:
    """All nights, newest first."""
    nights = each(lambda run: read(root, run), root.folders("runs"))
    return sorted((n for n in nights if n), key=lambda n: n.started_at, reverse=True)


def status(root: Root, run_id: str | None = None, limit: int = 1) -> Status:
    """The state of the night of a run, or of the newest nights; nothing is changed."""
    claim = lock.newest(root)
    nights = [n for n in [read(root, run_id)] if n] if run_id else every(root)[:limit]
    for night in nights:
        if night.state == "running" and not _alive(night, claim):
            night.state = "lost"
            for step in night.steps:
                step.state = "lost" if step.state == "running" else step.state
    live = tables.published(root, "creatives")
    report = Status(
        root_uri=root.uri,
        lock=claim,
        live_version=live and live.version,
        live_run_id=live and live.run_id,
        live_since=live and live.time,
        nights=nights,
        catalogs=[] if run_id else each(_catalog, root.catalogs()),
    )
    if nights and nights[0].state == "running":
        report.progress = read_progress(root, nights[0])
    return report


def _catalog(catalog: Root) -> CatalogStatus:
    told = status(catalog)
    night = next(iter(told.nights), None)
    return CatalogStatus(
        catalog=catalog.catalog,
        live_version=told.live_version,
        live_since=told.live_since,
        night=night and night.run_id,
        state=night and night.state,
    )


def _alive(night: Night, claim: Claim | None) -> bool:
    if claim is None or claim.run_id != night.run_id or claim.released:
        return False
    return not claim.gone and claim.expires_at > datetime.now(UTC)


def read_progress(root: Root, night: Night) -> dict[str, Any] | None:
    """The running step's last progress, if it has reported any since it began."""
    running = next((s for s in night.steps if s.state == "running"), None)
    try:
        facts = json.loads(root.read(f"runs/{night.run_id}/progress.json"))
        at = datetime.fromisoformat(facts["at"])
        if running is None or running.started_at is None or facts["job"] != running.step:
            return None
        return facts if at >= running.started_at.replace(microsecond=0) else None
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None  # none was written, or something else lies there


def _name(run_id: str) -> str:
    return f"runs/{run_id}/night.json"
