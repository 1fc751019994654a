"""What the actors of a job's stages spend their time on: networks, other work, loading, and waiting for each other."""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

import ray
from ray.data import Dataset
from ray.exceptions import RayError

from adbooster.engine.cluster import beside_driver
from adbooster.engine.stage_records import FILE, read
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
LEAST_BUSY = 0.7  # share of its time that a GPU stage should be in networks
LONG_ENOUGH_S = 300.0  # of its actors' time together; shorter nights are mostly their beginning and end


class Call(NamedTuple):
    """One call of a stage in an actor; seconds.

    network_s  in networks; other_s  in the stage besides; loading_s  models; idle_s  since the call before
    """

    rows: int
    network_s: float
    other_s: float
    loading_s: float
    idle_s: float


class StageTimes:
    """Adds up the calls of all actors, by job; lives in a Ray actor of its own."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, dict[str, Any]]] = {}
        self.began: dict[str, float] = {}

    def start(self, job: str) -> None:
        self.began[job] = time.monotonic()

    def add(self, job: str, stage: str, actor: str, gpus: float, call: Call) -> None:
        now = time.monotonic() - self.began.get(job, time.monotonic())
        stages = self.jobs.setdefault(job, {})
        known = stages.setdefault(stage, {"gpus": gpus, "actors": set(), "calls": 0, "rows": 0})
        known["actors"].add(actor)
        known["ended_s"] = now
        known.setdefault("began_s", now - call.network_s - call.other_s)
        known["calls"] += 1
        for name, value in call._asdict().items():
            known[name] = known.get(name, 0) + value

    def found(self, job: str) -> dict[str, dict[str, Any]]:
        """By stage; forgotten here."""
        self.began.pop(job, None)
        return {name: known | {"actors": len(known["actors"])} for name, known in self.jobs.pop(job, {}).items()}


class Handle(NamedTuple):
    """Where the calls of a job's stages are told."""

    actor: Any  # Ray does not type its handles
    job: str


@cache
def _actor(ray_job: str) -> Any:
    """One for all jobs of this driver: a Ray actor is a process, and takes seconds to start."""
    return beside_driver(StageTimes)


def start() -> Handle:
    handle = Handle(_actor(ray.get_runtime_context().get_job_id()), uuid4().hex)
    handle.actor.start.remote(handle.job)
    return handle


class Clock:
    """Of one actor: tells a StageTimes what its calls took."""

    def __init__(self, stage: str, gpus: float, times: Handle | None):
        self.stage, self.gpus, self.times, self.actor = stage, gpus, times, uuid4().hex
        self.ended: float | None = None

    def begin(self) -> None:
        now = time.monotonic()
        self.idle_s = now - self.ended if self.ended is not None else 0.0
        self.began = now

    def end(self, rows: int, network_s: float, loading_s: float) -> Call:
        self.ended = time.monotonic()
        other_s = max(0.0, self.ended - self.began - loading_s - network_s)
        call = Call(rows, network_s, other_s, loading_s, self.idle_s)
        if self.times is not None and rows:
            self.times.actor.add.remote(self.times.job, self.stage, self.actor, self.gpus, call)
        return call


def write(root: Root, run_id: str, job: str, times: Handle, blocked: Sequence[Mapping[str, float]]) -> dict[str, dict]:
    """Keep the times of a job's stages as runs/<run_id>/stages.json, beside those of other jobs of the run.

    blocked  as of `blocked_s`, of each dataset that ran
    returns  by stage: actors, gpus, calls, rows, seconds of all actors together (network_s, other_s, loading_s,
             input_wait_s, output_wait_s), began_s and ended_s since the job began, network_share of the time but loading,
             and row_s, seconds a row without waiting
    """
    stages = {}
    try:
        found = ray.get(times.actor.found.remote(times.job))
    except RayError as e:  # no reason to end a night
        log.warning("the times of the stages are lost: %s", e)
        found = {}
    for name, known in found.items():
        idle_s = known.pop("idle_s")
        output_s = min(idle_s, sum(b.get(name, 0.0) for b in blocked) * known["actors"])
        worked = known["network_s"] + known["other_s"]
        stages[name] = {k: round(v, 3) if isinstance(v, float) else v for k, v in known.items()} | {
            "input_wait_s": round(idle_s - output_s, 3),
            "output_wait_s": round(output_s, 3),
            "network_share": round(known["network_s"] / max(worked + idle_s, 1e-9), 4),
            "row_s": round(worked / max(known["rows"], 1), 5),
        }
    if stages:
        root.write_json(f"runs/{run_id}/{FILE}", read(root, run_id) | {job: stages})
    for line in wasted(stages):
        log.warning(line)
    return stages


def wasted(stages: dict[str, dict]) -> list[str]:
    """A sentence for every stage that held a GPU and was not in networks for LEAST_BUSY of its time, and what to change."""
    lines = []
    for name, s in stages.items():
        spent = s["network_s"] + s["other_s"] + s["input_wait_s"] + s["output_wait_s"]
        if not s["gpus"] or spent < LONG_ENOUGH_S or s["network_share"] >= LEAST_BUSY:
            continue
        causes = {"it waited for input: give the stage before it more actors": s["input_wait_s"]}
        causes["it waited for the stage after it: give that more actors"] = s["output_wait_s"]
        causes["its own work outside networks: larger batches, or more CPUs an actor"] = s["other_s"]
        why = max(causes, key=lambda cause: causes[cause])
        lines.append(
            f"{name} held GPUs and was in networks for {s['network_share']:.0%} of its time; most of the rest: {why}"
        )
    return lines


def blocked_s(ds: Dataset) -> dict[str, float]:
    """Seconds, by stage, in which Ray Data began nothing for lack of room after it; empty where it does not tell."""
    found: dict[str, float] = {}
    try:  # no public way in Ray 2.60
        summary = ds._get_stats_summary()
        while summary is not None:
            for operator in summary.operators_stats:
                name = operator.operator_name.removeprefix("MapBatches(").removesuffix(")")
                found[name] = float(summary.extra_metrics.get("task_submission_backpressure_time", 0.0))
            summary = summary.parents[0] if summary.parents else None
    except (AttributeError, TypeError, IndexError):
        return {}
    return found
