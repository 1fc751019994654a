"""How long a night may paint: until a time, and for so many GPU-hours; the rest is left for the next night."""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeAlias
from uuid import uuid4

import pyarrow as pa
import ray

from adbooster.contracts import schema
from adbooster.engine.cluster import beside_driver
from adbooster.engine.isolation import Isolated

LEFT = "left_for_later"  # travels in the reject column of what is not painted tonight; never reaches a table
Handle: TypeAlias = Any
"""Ray's handle of a BudgetMeter's actor, which Ray does not type."""


class BudgetMeter:
    """Decides whether one more batch may be painted, for all painters together; lives in a Ray actor of its own.

    A batch is refused if, taking as long as the longest so far, it would end after `stop_at` or would, with those that
    are being painted, use more than `gpu_s`. One clock decides: that of the node it runs on.
    """

    def __init__(self, stop_at: float | None, gpu_s: float | None):
        self.stop_at, self.gpu_s = stop_at, gpu_s
        self.spent = self.longest = 0.0
        self.painting: set[str] = set()
        self.allowed: set[str] = set()
        self.exhausted: str | None = None

    def try_begin(self, painter: str, seconds: float | None, requests: Iterable[str] = ()) -> str | None:
        """`painter` painted for `seconds` since its last call (None: nothing yet) and asks for a batch of `requests`.

        returns None if it may, else what is used up: deadline or gpu_hours; once one is refused, all are
        """
        self.finished(painter, seconds)
        if self.stop_at is not None and time.time() + self.longest >= self.stop_at:
            self.exhausted = self.exhausted or "deadline"
        expected = self.spent + self.longest * (len(self.painting) + 1)
        if self.gpu_s is not None and (self.spent >= self.gpu_s or expected > self.gpu_s):
            self.exhausted = self.exhausted or "gpu_hours"
        if not self.exhausted:
            self.painting.add(painter)
            self.allowed.update(requests)
        return self.exhausted

    def begin_round(self) -> None:
        """Another round of painting: requests allowed before are painted by now."""
        self.allowed.clear()

    def settled(self, finished: set[str]) -> bool:
        """Whether nothing more will come: all painters are refused, and all that this round allowed is `finished`."""
        return self.exhausted is not None and self.allowed <= finished

    def finished(self, painter: str, seconds: float | None) -> None:
        """`painter` has painted for `seconds` and begins nothing for now."""
        self.painting.discard(painter)
        if seconds is not None:
            self.spent += seconds
            self.longest = max(self.longest, seconds)

    def exhausted_by(self) -> str | None:
        """What is used up, if anything."""
        return self.exhausted


def start_meter(stop_at: datetime | None, gpu_s: float | None) -> Handle:
    """A BudgetMeter beside this driver: it is lost only with it."""
    return beside_driver(BudgetMeter, stop_at.timestamp() if stop_at else None, gpu_s, max_task_retries=-1)


def exhausted_by(meter: Handle) -> str | None:
    """What is used up, deadline or gpu_hours; None: nothing yet."""
    return ray.get(meter.exhausted_by.remote())


def settled(meter: Handle, parts: list[pa.Table]) -> bool:
    """Whether nothing more will come from metered painters after `parts` (schema.STAGED)."""
    requests = {id_ for part in parts for id_ in part["request_id"].to_pylist()}
    return ray.get(meter.settled.remote(requests))


def begin_round(meter: Handle) -> None:
    """Another round of painting begins; what was allowed before is painted by now."""
    ray.get(meter.begin_round.remote())


class Metered:
    """A painter that asks the meter first; a batch that is refused comes back marked LEFT, and no model is loaded for it."""

    def __init__(self, stage: Isolated, meter: Handle):
        self.stage, self.meter, self.painter, self.seconds = stage, meter, uuid4().hex, None

    def __call__(self, rows: pa.Table) -> pa.Table:
        requests = rows["request_id"].to_pylist()
        if ray.get(self.meter.try_begin.remote(self.painter, self.seconds, requests)):
            self.seconds = None
            return _left(rows, self.stage.out)
        self.stage.build()
        started = time.monotonic()
        painted = self.stage(rows)
        self.seconds = time.monotonic() - started
        return painted


def _left(rows: pa.Table, out: pa.Schema) -> pa.Table:
    marked = rows.set_column(
        rows.schema.get_field_index("reject"), "reject", pa.array([LEFT] * rows.num_rows, pa.string())
    )
    return schema.fill(marked, out)
