"""One night at a time in a catalog: a lock that expires unless its holder renews it.

The lock is a series of numbered files, `locks/night/<number>.json`. The process that creates the next number, which
only one can (O_EXCL on disk, If-None-Match on S3), holds the lock; the holder of a lower number has lost it. So a number
is a fencing token: every commit of a night first checks that its number is still the highest.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from pydantic import BaseModel

from adbooster.contracts.errors import LockHeld, LockLost
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
_environment = threading.Lock()
FOLDER = "locks/night"
HELD = "ADBOOSTER_NIGHT_LOCK"  # environment of nights and of their steps: the locks that they work under, by root
KEPT = 20  # past numbers; a number is never used twice


class Claim(BaseModel):
    """One holder of the lock; times are UTC, by the holder's clock."""

    number: int
    token: str
    run_id: str
    host: str
    pid: int
    machine: str
    """which boot and process namespace `pid` belongs to; empty where that is not known"""
    since: datetime
    renewed_at: datetime
    expires_at: datetime
    released: bool = False

    @property
    def gone(self) -> bool:
        """Whether the holder's process has ended, as far as this machine can tell."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def newest(root: Root) -> Claim | None:
    """Who holds the lock, or was the last to; None if no night ever ran."""
    numbers = _numbers(root)
    return Claim.model_validate_json(root.read(_name(numbers[-1]))) if numbers else None


def running(root: Root) -> Claim | None:
    """Who holds the lock now, as far as this machine and the storage's stamps can tell; None if it is free or has expired."""
    last = newest(root)
    if last is None or last.released or last.gone:
        return None
    lasts_s = (last.expires_at - last.renewed_at).total_seconds()
    return last if root.now() - root.modified(_name(last.number)) < lasts_s else None


def held(root: Root | None = None) -> dict | None:
    """The lock that this process works under as part of a night, without `root` the last of them; None outside of one."""
    claims = json.loads(os.environ.get(HELD, "{}"))
    return list(claims.values() or [None])[-1] if root is None else claims.get(root.uri)


def fence(root: Root) -> None:
    """raises LockLost if this process is part of a night below `root` whose lock another night holds now"""
    claim = held(root)
    if not claim:
        return
    last = newest(root)
    if last is None or last.token != claim["token"]:
        by = f"night {last.run_id} has held it since {last.since:%Y-%m-%d %H:%M:%S} UTC" if last else "it was removed"
        raise LockLost(f"this night's lock of {root.uri} expired and {by}; nothing more of this night is published")


class NightLock:
    """`with NightLock(root, run_id):` one night runs below the root; renewed by a thread, released at the end.

    ttl_s   after so long without renewal another night may take the lock over. No machine's clock counts: the age of a
            renewal is taken from the storage's stamps, and a night that finds a lock expired first watches for a third of
            that lock's time whether it is renewed; for all of it where the storage's clock was set back.
    raises  LockHeld if another night runs: which, where and since when
    """

    def __init__(self, root: Root, run_id: str, ttl_s: float = 120):
        self.root, self.run_id, self.ttl_s = root, run_id, ttl_s
        self.claim: Claim | None = None
        self._stop = threading.Event()

    def __enter__(self) -> "NightLock":
        last = newest(self.root)
        if last and not last.released and not last.gone:
            self._refuse_unless_expired(last)
        self.claim = self._create(last.number + 1 if last else 1)
        if last and not last.released:
            log.warning("took over the lock of night %s, which was not released", last.run_id)
        self.root.remove([_name(n) for n in _numbers(self.root)[:-KEPT]])
        _work_under(self.root, {"number": self.claim.number, "token": self.claim.token, "pid": os.getpid()})
        self._thread = threading.Thread(target=self._renew, daemon=True, name="night lock")
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()
        _work_under(self.root, None)
        try:
            if not self.lost():
                self._write(released=True)
        except OSError as e:  # must not hide the error that ended the night
            log.warning("the lock of %s could not be released and expires by itself: %s", self.root.uri, e)

    def lost(self) -> bool:
        assert self.claim is not None  # the lock has been entered
        last = newest(self.root)
        return last is None or last.token != self.claim.token

    def _refuse_unless_expired(self, last: Claim) -> None:
        lasts_s, age_s = (last.expires_at - last.renewed_at).total_seconds(), self._age_s(last)
        if 0 <= age_s < lasts_s:
            self._refuse(last)
        log.info("the lock of night %s looks expired; watching whether it is renewed", last.run_id)
        time.sleep(lasts_s / 3 if age_s >= 0 else lasts_s)
        again = newest(self.root)
        if again is None or (again.token, again.renewed_at) != (last.token, last.renewed_at):
            self._refuse(again or last)

    def _age_s(self, claim: Claim) -> float:
        """Seconds since a claim was written, by the clock of the storage; negative if that was set back since."""
        return self.root.now() - self.root.modified(_name(claim.number))

    def _refuse(self, last: Claim) -> None:
        lasts_s = (last.expires_at - last.renewed_at).total_seconds()
        raise LockHeld(
            f"night {last.run_id} has held the lock of {self.root.uri} since {last.since:%Y-%m-%d %H:%M:%S} UTC "
            f"(process {last.pid} on {last.host}, renewed {max(0.0, self._age_s(last)):.0f} s ago); two nights never run at "
            f"once: wait for it, or, if it is gone, until {lasts_s:.0f} s after its last renewal"
        )

    def _create(self, number: int) -> Claim:
        now = _now()
        claim = Claim(
            number=number,
            token=uuid4().hex,
            run_id=self.run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            machine=_machine(),
            since=now,
            renewed_at=now,
            expires_at=now + timedelta(seconds=self.ttl_s),
        )
        try:
            self.root.create(_name(number), claim.model_dump_json(indent=2).encode())
        except OSError:
            # Another night was first; or the answer was lost, the request was repeated, and the file is ours.
            last = newest(self.root)
            if last is None or last.number < number:
                raise
            if last.token != claim.token:
                self._refuse(last)
        if (last := newest(self.root)) and last.token != claim.token:
            self._refuse(last)
        return claim

    def _renew(self) -> None:
        while not self._stop.wait(self.ttl_s / 4):
            try:
                if self.lost():
                    log.error("another night has taken over the lock of %s; nothing more is published", self.root.uri)
                    return
                self._write()
            except OSError as e:
                log.warning("the lock of %s could not be renewed, trying again: %s", self.root.uri, e)

    def _write(self, **changes) -> None:
        assert self.claim is not None  # the lock has been entered
        now = _now()
        times = {"renewed_at": now, "expires_at": now + timedelta(seconds=self.ttl_s)}
        self.claim = self.claim.model_copy(update=times | changes)
        self.root.write(_name(self.claim.number), self.claim.model_dump_json(indent=2).encode())


def _work_under(root: Root, claim: dict | None) -> None:
    """From now on, or no longer; nights of several catalogs may run in threads of one process."""
    with _environment:
        claims = json.loads(os.environ.get(HELD, "{}"))
        claims.pop(root.uri, None)
        if claim:
            claims[root.uri] = claim
        os.environ[HELD] = json.dumps(claims)


def _name(number: int) -> str:
    return f"{FOLDER}/{number:012}.json"


def _now() -> datetime:
    """This machine's time, for people to read; nothing is decided by it."""
    return datetime.now(UTC)


def _numbers(root: Root) -> list[int]:
    return sorted(int(name[:12]) for name in root.files(FOLDER) if re.fullmatch(r"[0-9]{12}\.json", name))


def _machine() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f"{f.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
