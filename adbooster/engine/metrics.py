"""What a cluster's dashboard can show of a run, as Ray metrics; Ray exports each as `ray_<name>`.

adbooster_creatives_total    paintings accepted as creatives                       job, run_id
adbooster_fallbacks_total    requests answered with the product's own picture      job, run_id
adbooster_rejects_total      rows, and candidates that a gate turned down          job, run_id, word
adbooster_candidates_total   paintings, accepted or not                            job, run_id
adbooster_gpu_seconds_total  seconds that painters painted                         job, run_id
adbooster_stage_seconds_total  seconds of stages' actors, by state: network, other, loading, idle  job, run_id, stage, state
adbooster_queue_depth        rows that a job still has before it                   job, run_id
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
from ray.util import metrics

from adbooster.engine.stage_times import Call

TAGS = ("job", "run_id")
SILENT = ("unchanged", "left_for_later")  # reject words of rows without work to do, which are not bad
_MEANINGS = {line.split()[0]: line.split(maxsplit=1)[1].split("  ")[0] for line in (__doc__ or "").splitlines()[2:]}
_run: ContextVar[dict[str, str] | None] = ContextVar("run", default=None)


@contextmanager
def of_run(job: str, run_id: str) -> Iterator[None]:
    """What is counted for stages that start in this block carries these tags."""
    token = _run.set({"job": job, "run_id": run_id})
    try:
        yield
    finally:
        _run.reset(token)


def tags() -> dict[str, str]:
    return _run.get() or {"job": "", "run_id": ""}


@cache
def _counter(name: str, *more: str) -> metrics.Counter:
    return metrics.Counter(name, _MEANINGS.get(name, ""), (*TAGS, *more))


@cache
def _gauge(name: str) -> metrics.Gauge:
    return metrics.Gauge(name, _MEANINGS.get(name, ""), TAGS)


def add(name: str, value: float, tags: dict[str, str], **more: str) -> None:
    if value > 0:
        _counter(name, *more).inc(value, tags | more)


def queue(depth: int, tags: dict[str, str]) -> None:
    _gauge("adbooster_queue_depth").set(depth, tags)


def stage(name: str, call: Call, tags: dict[str, str]) -> None:
    """Count what a call of a stage took, and what its actor waited before."""
    for state in ("network", "other", "loading", "idle"):
        add("adbooster_stage_seconds_total", getattr(call, f"{state}_s"), tags, stage=name, state=state)


def count(rows: pa.Table, tags: dict[str, str]) -> None:
    """Count what a stage returned; takes some microseconds a batch."""
    words = Counter(rows["reject"].drop_null().to_pylist())
    if {"candidate_rejects", "rank"} <= set(rows.column_names):  # as finished; as painted there is no rank yet
        painted = rows.filter(pc.is_null(rows["reject"]))
        first = painted.filter(pc.equal(painted["rank"], 0))
        words.update(word for some in first["candidate_rejects"].to_pylist() for word in some or ())
        fallbacks = pc.sum(first["fallback"]).as_py() or 0
        add("adbooster_creatives_total", painted.num_rows - fallbacks, tags)
        add("adbooster_fallbacks_total", fallbacks, tags)
        add("adbooster_gpu_seconds_total", pc.sum(first["gpu_s"]).as_py() or 0.0, tags)
    for word, n in words.items():
        if word not in SILENT:
            add("adbooster_rejects_total", n, tags, word=word)
