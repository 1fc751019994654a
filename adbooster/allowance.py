"""How long a night may paint: until a time, and for so many GPU-hours; what it leaves is left whole."""

import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import uuid4
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adbooster import schema
from adbooster.errors import ConfigError

LEFT = "left_for_later"  # travels in the reject column of what is not painted tonight; never reaches a table
_TIMES = {"s": "seconds", "m": "minutes", "h": "hours"}


def until(text: str, now: datetime) -> datetime | None:
    """When a deadline ends: `5h`, `90m` from now; `06:30` next, in `now`'s zone or with a zone's name; an ISO time.

    now      with its zone
    returns  None for an empty text
    raises   ConfigError for anything else
    """
    text = text.strip()
    if not text:
        return None
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text):
        return now + timedelta(**{_TIMES[found[2]]: float(found[1])})
    try:
        if found := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)(?: +(\S+))?", text):
            here = now.astimezone(ZoneInfo(found[3])) if found[3] else now
            then = here.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
            return then if then > here else then + timedelta(days=1)
        then = datetime.fromisoformat(text)
        return then if then.tzinfo else then.replace(tzinfo=now.tzinfo)
    except (ValueError, ZoneInfoNotFoundError) as e:
        raise ConfigError(
            f"the deadline {text!r} is none: 5h and 90m are (from the start), so are 06:30 (this machine's time), "
            "06:30 Europe/Berlin and 2026-11-24T06:30:00+01:00"
        ) from e


class Meter:
    """Says whether one more batch may be painted, for all painters together; lives in a Ray actor of its own.

    A batch is refused if, taking as long as the longest so far, it would end after `stop_at` or would, with those that
    are being painted, use more than `gpu_s`. One clock decides: that of the node it runs on.
    """

    def __init__(self, stop_at: float | None, gpu_s: float | None):
        self.stop_at, self.gpu_s = stop_at, gpu_s
        self.spent = self.longest = 0.0
        self.painting: set[str] = set()
        self.let: set[str] = set()
        self.stopped: str | None = None

    def ask(self, who: str, seconds: float | None, requests: Iterable[str] = ()) -> str | None:
        """`who` has painted for `seconds` since it last asked (None: nothing yet) and would begin a batch of `requests` (ids).

        returns None if it may, else what is used up: deadline or gpu_hours; once refused, all are
        """
        self.tell(who, seconds)
        if self.stop_at is not None and time.time() + self.longest >= self.stop_at:
            self.stopped = self.stopped or "deadline"
        needed = self.spent + (len(self.painting) + 1) * self.longest
        if self.gpu_s is not None and (needed > self.gpu_s or self.spent >= self.gpu_s):
            self.stopped = self.stopped or "gpu_hours"
        if not self.stopped:
            self.painting.add(who)
            self.let.update(requests)
        return self.stopped

    def begin(self) -> None:
        """Another round of painting: what was let paint before is done."""
        self.let.clear()

    def settled(self, painted: int) -> bool:
        """Whether nothing more will come: all are refused, and what was let paint has been: `painted` requests of this round."""
        return self.stopped is not None and painted >= len(self.let)

    def tell(self, who: str, seconds: float | None) -> None:
        """`who` has painted for `seconds` and begins nothing for now."""
        self.painting.discard(who)
        if seconds is not None:
            self.spent += seconds
            self.longest = max(self.longest, seconds)

    def word(self) -> str | None:
        """What is used up, if anything."""
        return self.stopped


def start_meter(stop_at: datetime | None, gpu_s: float | None):
    """A Meter beside this driver: it is lost only with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(Meter)
    return actor.remote(stop_at.timestamp() if stop_at else None, gpu_s)


def settled(meter, parts: list[pa.Table]) -> bool:
    """Whether nothing more will come from metered painters; `parts` came (schema.STAGED)."""
    requests = {id_ for part in parts for id_ in part["request_id"].to_pylist()}
    return ray.get(meter.settled.remote(len(requests)))


def metered(stage: type, meter) -> type:
    """The stage for one round, but that a batch which the meter refuses comes back marked LEFT, without a model loaded for it."""
    ray.get(meter.begin.remote())

    class Metered:
        def __init__(self, **init):
            self.init, self.stage, self.who, self.seconds = init, None, uuid4().hex, None

        def __call__(self, rows: pa.Table) -> pa.Table:
            if ray.get(meter.ask.remote(self.who, self.seconds, rows["request_id"].to_pylist())):
                self.seconds = None
                return _left(rows)
            self.stage = self.stage or stage(**self.init)
            started = time.monotonic()
            done = self.stage(rows)
            self.seconds = time.monotonic() - started
            return done

    Metered.__name__ = Metered.__qualname__ = stage.__name__
    return Metered


def _left(rows: pa.Table) -> pa.Table:
    marked = rows.set_column(
        rows.schema.get_field_index("reject"), "reject", pa.array([LEFT] * rows.num_rows, pa.string())
    )
    return schema.fill(marked, schema.STAGED)
