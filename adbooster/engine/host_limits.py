"""How hard a web server is asked, in one view for all who fetch from it: shared out by leases, slower where it asks for that."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEASE_S = 10.0  # a fetcher that asks no more, because it died, gives back what it held after so long
FIRST_PAUSE_S = 0.5  # after a 429 or 503 that names no time; doubled from one to the next
DOWN_AFTER = 5  # times, at least LEAST_APART_S and its pauses apart, that a host answered nothing well
LEAST_APART_S = 1.0


class Limits(NamedTuple):
    """What one host may be asked by all fetchers together."""

    per_host: int
    """photos under way at once"""
    requests_per_s: float | None
    """photos begun a second; None: no limit but `per_host`"""
    longest_pause_s: float


class Seen(NamedTuple):
    """What a host answered since the last time."""

    requests: int = 0
    unchanged: int = 0
    """answers 304"""
    throttled: int = 0
    """answers 429 and 503"""
    errors: int = 0
    """other answers from 500, and none at all"""
    seconds: float = 0.0
    """from request to answer, of all together"""
    retry_after_s: float = 0.0
    """the longest that was asked for"""

    def plus(self, more: "Seen") -> "Seen":
        sums = (a + b for a, b in zip(self[:-1], more[:-1], strict=True))
        return Seen._make([*sums, max(self.retry_after_s, more.retry_after_s)])


class Ask(NamedTuple):
    """A fetcher's photos of one host: under way and waiting, under way alone, and what was answered."""

    wanted: int
    under_way: int
    seen: Seen


class Grant(NamedTuple):
    """What a fetcher may do with one host until it asks again, LEASE_S at most."""

    slots: int
    """photos under way at once"""
    pause_s: float
    """until the next may begin"""
    interval_s: float
    """between the beginnings of two"""
    down_s: float
    """how long the host has been down: it is asked for one photo at a time, to see whether it is back; 0: it is not down"""


@dataclass
class _Host:
    most: float  # photos under way at once, as the host bears it
    leases: dict[str, tuple[int, float]] = field(default_factory=dict)  # by fetcher: how many, until when
    waiting: dict[str, float] = field(default_factory=dict)  # fetchers that got none, the first first; until when
    paused_until: float = 0.0
    pause_s: float = 0.0
    failed: int = 0  # times that it answered nothing well, since it last did
    failed_at: float = 0.0
    down_since: float = 0.0
    seen: Seen = field(default_factory=Seen)
    busy_s: float = 0.0  # while photos of it waited or were under way
    last: float = 0.0  # when it was asked about


class HostLimits:
    """Decides how many photos of a host each fetcher may have under way, so that all of them together keep within the limits.

    A fetcher gets its part of `per_host`; where there are more fetchers than that, they take turns. A 429 or 503 stops
    all of them for as long as the host asks, and halves what it is asked; another error takes one off; what it answers
    well adds one, up to the limit. A host that answers nothing well for some time is down.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits, self.clock = limits, clock
        self.hosts: dict[str, _Host] = {}

    def exchange(self, fetcher: str, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        """Take what a fetcher has seen of some hosts, and lease it what it may do with them now."""
        return {name: self._lease(fetcher, name, ask) for name, ask in asks.items()}

    def measured(self) -> dict[str, dict[str, Any]]:
        """By host: what was seen, requests a second while it was fetched from, and the mean seconds to an answer."""
        return {name: _measured(host) for name, host in self.hosts.items() if host.seen.requests}

    def _lease(self, fetcher: str, name: str, ask: Ask) -> Grant:
        now, host = self.clock(), self.hosts.setdefault(name, _Host(float(self.limits.per_host)))
        self._heed(host, ask.seen, now)
        if host.leases or host.waiting:
            host.busy_s += now - host.last
        host.last = now
        host.leases = {f: lease for f, lease in host.leases.items() if lease[1] > now and f != fetcher}
        host.waiting = {f: until for f, until in host.waiting.items() if until > now}
        slots = self._share(host, fetcher, ask.wanted)
        if slots or not ask.wanted:
            host.waiting.pop(fetcher, None)
        else:
            host.waiting[fetcher] = now + LEASE_S  # a name that is there keeps its place
        if held := max(slots, ask.under_way):
            host.leases[fetcher] = (held, now + LEASE_S)
        rate = self.limits.requests_per_s
        interval_s = self.limits.per_host / (rate * slots) if rate and slots else 0.0
        down_s = max(now - host.down_since, LEAST_APART_S) if host.failed >= DOWN_AFTER else 0.0
        return Grant(slots, max(0.0, host.paused_until - now), interval_s, down_s)

    @staticmethod
    def _share(host: _Host, fetcher: str, wanted: int) -> int:
        order = list(host.waiting)
        ahead = order.index(fetcher) if fetcher in order else len(order)
        free = int(host.most) - sum(held for held, _ in host.leases.values()) - ahead
        fair = -(-int(host.most) // len({fetcher, *host.leases, *host.waiting}))
        return max(0, min(wanted, free, fair))

    def _heed(self, host: _Host, seen: Seen, now: float) -> None:
        host.seen = host.seen.plus(seen)
        if not seen.requests:
            return
        if seen.requests > seen.throttled + seen.errors:
            host.failed = 0
        elif now >= max(host.paused_until, host.failed_at + LEAST_APART_S):
            host.failed, host.failed_at = host.failed + 1, now
            if host.failed == DOWN_AFTER:
                host.down_since = now
        if host.failed >= DOWN_AFTER:
            host.most = 1.0
        if seen.throttled or seen.retry_after_s:
            if now >= host.paused_until:  # another fetcher may have seen the same
                host.most = max(1.0, host.most / 2)
                host.pause_s = max(FIRST_PAUSE_S, 2 * host.pause_s)
            pause_s = min(seen.retry_after_s or host.pause_s, self.limits.longest_pause_s)
            host.paused_until = max(host.paused_until, now + pause_s)
        elif seen.errors:
            host.most = max(1.0, host.most - 1)
        else:
            host.most, host.pause_s = min(self.limits.per_host, host.most + 1), 0.0


def _measured(host: _Host) -> dict[str, Any]:
    seen, spent = host.seen, max(host.busy_s, 1e-3)
    return {
        "requests": seen.requests,
        "unchanged": seen.unchanged,
        "throttled": seen.throttled,
        "errors": seen.errors,
        "requests_per_s": round(seen.requests / spent, 2),
        "latency_s": round(seen.seconds / seen.requests, 4),
    }
