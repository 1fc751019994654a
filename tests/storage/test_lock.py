"""Two nights never run at once, on disk and on S3; a lock that nobody renews can be taken over, and its old holder publishes nothing."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import LockHeld, LockLost
from adbooster.storage import lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root
from tests.conftest import row

ELSEWHERE = {"machine": "another machine"}


@pytest.fixture(params=["disk", "s3"])
def where(request, tmp_path):
    return Root(str(tmp_path / "root") if request.param == "disk" else request.getfixturevalue("s3_root"))


def left_behind(root: Root, ttl_s: float) -> lock.Claim:
    """The lock of a night whose driver was killed: never released, and not renewed for as long as it lasts."""
    with NightLock(root, "killed", ttl_s) as held:
        claim = held.claim.model_copy(update=ELSEWHERE)
    root.write(lock._name(claim.number), claim.model_dump_json().encode())
    time.sleep(ttl_s + (0.1 if root.is_local else 1.1))  # S3 stamps whole seconds
    return claim


def cohort(name: str) -> pa.Table:
    return pa.Table.from_pylist([row(schema.COHORTS, cohort_id=name, version=name)], schema.COHORTS)


def test_a_second_night_is_told_who_runs(where):
    with (
        NightLock(where, "first"),
        pytest.raises(LockHeld, match=r"night first has held the lock of .* since \d{4}-.*process \d+ on "),
        NightLock(where, "second"),
    ):
        pass
    with NightLock(where, "third") as held:  # released at the end, so the next one waits for nothing
        assert held.claim.number == 2
    assert lock.newest(where).released


def test_of_many_at_once_one_holds_it(where):
    held, refused = [], []
    start, done = threading.Barrier(8), threading.Event()

    def night(i: int) -> None:
        mine = NightLock(where, f"night {i}")
        start.wait()
        try:
            mine.claim = mine._create(1)
        except LockHeld as e:
            return refused.append(str(e))
        held.append(i)
        return done.set()

    threads = [threading.Thread(target=night, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(held) == 1
    assert len(refused) == 7
    assert all(f"night night {held[0]} has held" in text for text in refused)


def test_a_night_that_renews_outlives_the_time_of_its_lock(where):
    with NightLock(where, "first", ttl_s=0.8):
        time.sleep(1.6)
        with pytest.raises(LockHeld, match="night first"), NightLock(where, "second", ttl_s=0.8):
            pass


def test_an_expired_lock_is_taken_over_and_its_holder_publishes_nothing(where, monkeypatch):
    gone = left_behind(where, ttl_s=1)
    with NightLock(where, "second", ttl_s=1) as now:
        assert now.claim.number == gone.number + 1
        tables.merge(where, "cohorts", cohort("a"), "cohort_id", None, {})
        told = json.dumps({where.uri: {"number": gone.number, "token": gone.token, "pid": os.getpid()}})
        with monkeypatch.context() as old_holder:
            old_holder.setenv(lock.HELD, told)
            with pytest.raises(LockLost, match="night second has held it since"):
                tables.merge(where, "cohorts", cohort("b"), "cohort_id", 0, {})
        tables.merge(where, "cohorts", cohort("c"), "cohort_id", 0, {})
    assert sorted(tables.read(where, "cohorts")["cohort_id"].to_pylist()) == ["a", "c"]


def test_a_renewal_that_comes_late_keeps_the_lock(root):
    """The contender finds the lock expired, and sees that it is renewed."""
    claim = left_behind(root, ttl_s=2)

    def renew() -> None:
        time.sleep(0.2)
        again = claim.model_copy(update={"renewed_at": claim.renewed_at + timedelta(seconds=1)})
        root.write(lock._name(claim.number), again.model_dump_json().encode())

    threading.Thread(target=renew).start()
    with pytest.raises(LockHeld, match="night killed"), NightLock(root, "second", ttl_s=2):
        pass


def test_the_lock_of_a_process_that_was_killed_here_is_free_at_once(root):
    code = (
        "import os, signal; from adbooster.storage.lock import NightLock; from adbooster.storage.objects import Root\n"
        f"with NightLock(Root({root.uri!r}), 'killed'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not lock.newest(root).released
    started = time.monotonic()
    with NightLock(root, "second") as held:
        assert held.claim.number == 2
    assert time.monotonic() - started < 5


def test_a_lost_lock_stays_with_its_new_holder(root):
    with NightLock(root, "first", ttl_s=0.4) as first:
        claim = first.claim.model_copy(update={"number": 2, "token": "x", "run_id": "second"})
        root.create(lock._name(2), claim.model_dump_json().encode())
        time.sleep(0.3)
        assert first.lost()
    assert lock.newest(root).run_id == "second"
    assert not lock.newest(root).released
