"""A fetcher's side of the limits of hosts: photos wait here until one of the host's permits is theirs."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from adbooster.engine import stage_process
from adbooster.engine.host_limits import LEASE_S, Ask, Grant, HostLimits, Limits, Seen

RENEW_S = LEASE_S / 5  # between two questions while photos of a host wait or are under way
REFUSED_S = 0.5  # until a host is asked about again of which others hold all permits
GIVEN_UP_S = 900.0  # after a host has been down for so long, no photo waits for it any more
GOES_ON_S = 1.0  # between two words to the actor that photos have begun, or wait as their host wants it
LOST_S = 30.0  # until the view of all fetchers is looked for again where nobody answered
Exchange = Callable[[Mapping[str, Ask]], dict[str, Grant]]


class SharedLimits:
    """Exchanges with the one view of all fetchers; while nobody answers for it, with a view of this fetcher's own share."""

    def __init__(self, share: Limits):
        self.own, self.look_again = HostLimits(share), 0.0

    def __call__(self, asks: Mapping[str, Ask]) -> dict[str, Grant]:
        if time.monotonic() >= self.look_again:
            if (grants := stage_process.ask(asks)) is not None:
                return grants
            self.look_again = time.monotonic() + LOST_S
        return self.own.exchange("", asks)


class HostDown(Exception):
    """A host has answered nothing for so long that a photo does not wait for it any more."""


class _Turn(NamedTuple):
    since: float
    future: asyncio.Future


@dataclass
class _Host:
    waiting: deque[_Turn] = field(default_factory=deque)
    under_way: int = 0
    seen: Seen = field(default_factory=Seen)
    urgent: bool = False  # others should know what was seen
    slots: int = 0
    granted: float = -LEASE_S  # when
    paused_until: float = 0.0
    next_start: float = 0.0
    interval_s: float = 0.0
    down_s: float = 0.0

    def may_begin(self, now: float) -> bool:
        leased = now < self.granted + LEASE_S and self.under_way < self.slots
        return bool(self.waiting) and leased and now >= self.starts()

    def starts(self) -> float:
        """When the next photo may begin, if there is a permit for it."""
        return max(self.paused_until, self.next_start)

    def due(self) -> float:
        """When to ask about it; never, where nothing waits, is under way or was seen."""
        if self.urgent:
            return 0.0
        if not self.waiting and not self.under_way:
            return float("inf")
        return self.granted + (RENEW_S if self.slots else REFUSED_S)


class Hosts:
    """Permits by host for the photos of one fetcher, asked for in batches: a question is about all hosts and many photos.

    exchange    as of `HostLimits`, for this fetcher; called in a thread
    patience_s  that a photo waits for a host that is down
    """

    def __init__(self, exchange: Exchange, patience_s: float):
        self._exchange, self.patience_s, self._hosts = exchange, patience_s, dict[str, _Host]()
        self._wake, self._closing = asyncio.Event(), False
        self._begun, self._told = False, 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Around a batch of photos: permits are handed out inside, and given back at the end."""
        self._closing = False
        serving = asyncio.create_task(self._serve())
        try:
            yield
        finally:
            self._closing = True
            self._wake.set()
            await serving

    @asynccontextmanager
    async def permit(self, name: str) -> AsyncIterator[None]:
        """One photo of a host under way, as soon as there is a permit for it.

        raises  HostDown
        """
        host = self._hosts.setdefault(name, _Host())
        turn = _Turn(time.monotonic(), asyncio.get_running_loop().create_future())
        host.waiting.append(turn)
        self._wake.set()
        await turn.future
        try:
            yield
        finally:
            host.under_way -= 1
            self._wake.set()

    def saw(self, name: str, status: int | None, seconds: float, retry_after_s: float | None = None) -> None:
        """One answer of a host; None: none came."""
        host = self._hosts.setdefault(name, _Host())
        throttled, failed = status in (429, 503), status is None or status >= 500
        answer = Seen(1, status == 304, throttled, failed and not throttled, seconds, retry_after_s or 0.0)
        host.seen = host.seen.plus(answer)
        if throttled or retry_after_s:
            host.urgent = True
            self._wake.set()

    def pause_s(self, name: str) -> float:
        """How long nothing more should be asked of a host."""
        host = self._hosts.get(name)
        return max(0.0, host.paused_until - time.monotonic()) if host else 0.0

    async def _serve(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()
                if time.monotonic() >= min((host.due() for host in self._hosts.values()), default=float("inf")):
                    await self._renew()
                look_again = self._begin()
                self._tell()
                await self._until(look_again)
            await self._renew()
            now = time.monotonic()
            self._hosts = {
                name: _Host(paused_until=h.paused_until, next_start=h.next_start)
                for name, h in self._hosts.items()
                if h.starts() > now
            }
        except BaseException as e:
            for host in self._hosts.values():
                while host.waiting:
                    _end(host.waiting.popleft(), e)
            raise

    def _tell(self) -> None:
        """Let the time of the row limits begin anew where photos get on, or wait for a rate or a pause of their host."""
        now = time.monotonic()
        held = any((h.waiting or h.under_way) and now < h.starts() for h in self._hosts.values())
        if (held or self._begun) and now >= self._told + GOES_ON_S:
            stage_process.goes_on()
            self._begun, self._told = False, now

    async def _until(self, when: float) -> None:
        wait_s = when - time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(wait_s, GOES_ON_S)):
                await self._wake.wait()

    def _begin(self) -> float:
        """Let begin what may; returns when to look again."""
        look_again = float("inf")
        for host in self._hosts.values():
            now = time.monotonic()
            while host.may_begin(now):
                turn = host.waiting.popleft()
                if not turn.future.done():
                    host.under_way += 1
                    self._begun = True
                    host.next_start = now + host.interval_s
                    turn.future.set_result(None)
            patience_s = self.patience_s if host.down_s < GIVEN_UP_S else 0.0
            while host.down_s and host.waiting and now - host.waiting[0].since >= patience_s:
                _end(host.waiting.popleft(), HostDown(f"it has answered nothing well for {host.down_s:.0f} s"))
            starts = host.starts() if host.waiting and host.under_way < host.slots else float("inf")
            look_again = min(look_again, host.due(), starts)
        return look_again

    async def _renew(self) -> None:
        """Ask about every host of which photos wait, are under way or were seen."""
        asks = {}
        for name, host in self._hosts.items():
            wanted = 0 if self._closing else len(host.waiting) + host.under_way
            if wanted or host.seen.requests or host.slots:
                asks[name] = Ask(wanted, host.under_way, host.seen)
                host.seen, host.urgent = Seen(), False
        now = time.monotonic()
        grants = await asyncio.get_running_loop().run_in_executor(None, self._exchange, asks) if asks else {}
        for name, grant in grants.items():
            host = self._hosts[name]
            host.slots, host.granted = grant.slots, now
            host.interval_s, host.down_s = grant.interval_s, grant.down_s
            if grant.pause_s:
                host.paused_until = time.monotonic() + grant.pause_s


def _end(turn: _Turn, error: BaseException) -> None:
    if not turn.future.done():
        turn.future.set_exception(error)
