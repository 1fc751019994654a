"""A storage that throttles, locks, is full, cut off or by another clock: waited out, or ended with one sentence; never half a table."""

import errno
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from adbooster.contracts.errors import AdboosterError, ConfigError, LockHeld, StorageError
from adbooster.storage import lock, model_store, node_cache, objects
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root, each
from adbooster.storage.s3 import PatientS3
from adbooster.storage.vacuum import vacuum
from tests.faults import Faults, FaultyS3
from tests.storage.test_tables import live, merge

BEGIN = """
import sys, time
from datetime import timedelta
from adbooster.contracts.errors import AdboosterError, StorageError
from adbooster.storage import tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root, each
from adbooster.storage.vacuum import vacuum
import pyarrow as pa
from adbooster.contracts import schema
def merge(root, ids, query, base):
    rows = [dict.fromkeys(schema.COHORTS.names) | {"cohort_id": i, "query": query} for i in ids]
    return tables.merge(root, "cohorts", pa.Table.from_pylist(rows, schema.COHORTS), "cohort_id", base, {})
root = Root(sys.argv[1])
"""  # without tests.conftest, which imports Ray


PUBLISH = "from tests.storage.test_rollback import publish\n"


@pytest.fixture
def s3(s3_endpoint, monkeypatch):
    """A proxy that this process and its children meet S3 through."""
    with FaultyS3(s3_endpoint, Faults()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        PatientS3.clear_instance_cache()
        yield proxy
    PatientS3.clear_instance_cache()


@contextmanager
def program(code: str, root_uri: str, **env: str) -> Iterator[subprocess.Popen]:
    """A process that works below a root; delta-rs in this one would keep the proxy from answering."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
    command = [sys.executable, "-c", BEGIN + code, root_uri]
    with subprocess.Popen(command, env=os.environ | env, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ends(process: subprocess.Popen, timeout_s: float = 60) -> str:
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err[-3000:]
    return out


WORK = """
names = each(lambda i: root.put(bytes([i]) * 1000, "webp"), range(48))
assert [root.read(name)[0] for name in names] == list(range(48))
print(merge(root, ["b"], "second", 0))
"""


def waited_out(s3: FaultyS3, root_uri: str, faults: Faults, most_s: float) -> None:
    root = Root(root_uri)
    merge(root, ["a"], "first", None)
    with program("print('ready'); input()\n" + WORK, root_uri) as process:
        assert process.stdout.readline() == "ready\n"
        s3.use(faults)
        process.stdin.write("\n")
        assert ends(process, most_s) == "1\n"
    assert sum(s3.faults.counts.values()) > 48
    s3.use(Faults())
    assert live(root) == {"a": "first", "b": "second"}


@pytest.mark.parametrize("fault", ["slow_down", "cut", pytest.param("refused", marks=pytest.mark.slow)])
def test_a_storage_that_answers_nothing_for_seconds_is_waited_for(s3, s3_root, fault):
    """48 objects at once and a commit, all of whose requests fail for 4 s."""
    waited_out(s3, s3_root, Faults(**{fault: 1.0}, for_s=4), 60)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_storage_that_throttles_for_minutes_is_waited_for(s3, s3_root):
    waited_out(s3, s3_root, Faults(slow_down=1.0, for_s=150), 300)


def test_patience_ends_with_a_sentence_and_is_spent_once(s3, s3_root, monkeypatch):
    root = Root(s3_root)
    name = root.put(b"pixels", "webp")
    monkeypatch.setenv("ADBOOSTER_STORAGE_PATIENCE_S", "2")
    s3.use(Faults(slow_down=1.0))
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"did not answer within .*, 2 s of tries \((SlowDown|503).*run again when it does"
    ):
        each(root.read, [name] * 64)
    assert 2 < time.monotonic() - started < 20
    asked = sum(s3.faults.counts.values())
    with pytest.raises(StorageError):
        root.read(name)
    assert sum(s3.faults.counts.values()) - asked <= 5, "an outage is waited out once"
    s3.use(Faults())
    assert root.read(name) == b"pixels"


def test_a_commit_that_cannot_be_made_is_said_and_made_by_the_next_run(s3, s3_root):
    root = Root(s3_root)
    merge(root, ["a"], "first", None)
    code = "input()\ntry: merge(root, ['b'], 'second', 0)\nexcept StorageError as e: print(e)"
    with program(code, s3_root, ADBOOSTER_STORAGE_PATIENCE_S="3") as process:
        s3.use(Faults(slow_down=1.0))
        process.stdin.write("\n")
        said = ends(process)
    assert re.search(r"tables/cohorts did not answer within .*3 s of tries.*finished work is kept", said)
    s3.use(Faults())
    assert live(root) == {"a": "first"}
    assert merge(root, ["b"], "second", 0) == 1


def test_a_storage_that_is_not_there_when_a_job_begins_is_not_waited_for(s3, s3_root, monkeypatch):
    monkeypatch.setattr(objects, "CHECK_S", 1)
    s3.use(Faults(cut=1.0))
    started = time.monotonic()
    with pytest.raises(ConfigError, match="cannot be written: s3://.* did not answer"):
        Root(s3_root).check_writable()
    assert time.monotonic() - started < 20
    s3.use(Faults(cut=1.0, for_s=3))
    Root(s3_root).write("x", b"")  # and is once it was


@pytest.mark.parametrize("told", ["five minutes", "-1", "nan", ""])
def test_a_patience_that_is_no_number_is_refused(root, monkeypatch, told):
    monkeypatch.setenv("ADBOOSTER_STORAGE_PATIENCE_S", told)
    with pytest.raises(
        ConfigError, match=f"ADBOOSTER_STORAGE_PATIENCE_S is '{told}'; it should be seconds, such as 300"
    ):
        root.check_writable()


def test_what_is_no_passing_fault_is_not_repeated(s3, s3_root):
    root = Root(s3_root)
    before = len(s3.done)
    with pytest.raises(FileNotFoundError):
        root.read("nothing")
    assert len(s3.done) - before <= 2


@pytest.fixture
def credentials(tmp_path, monkeypatch):
    """A file of credentials that can be renewed."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def renew(key: str) -> None:
        lines = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n"
        file.with_suffix(".new").write_text(lines)
        file.with_suffix(".new").replace(file)

    renew("OLDKEY")
    PatientS3.clear_instance_cache()
    return renew


def test_credentials_that_expire_are_read_again(s3, s3_root, credentials):
    """The file has new ones two seconds after the old ones have expired."""
    code = "print(merge(root, ['a'], 'first', None)); input()\n" + WORK
    with program(code, s3_root) as process:
        assert process.stdout.readline() == "0\n"
        s3.use(Faults(expired=frozenset({"OLDKEY"})))
        process.stdin.write("\n")
        time.sleep(2)
        credentials("NEWKEY")
        assert ends(process) == "1\n"
    assert s3.faults.counts["expired"] >= 1
    assert live(Root(s3_root)) == {"a": "first", "b": "second"}


def test_credentials_that_nobody_renews_end_in_a_sentence(s3, s3_root, credentials, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_STORAGE_PATIENCE_S", "2")
    root = Root(s3_root)
    root.write("x", b"1")
    s3.use(Faults(expired=frozenset({"OLDKEY"})))
    said = r"the credentials for s3://.* have expired \(ExpiredToken\).*renew them and run again"
    for ask in (lambda: root.read("x"), lambda: root.write("y", b"2"), lambda: root.put(b"3", "webp")):
        with pytest.raises(StorageError, match=said):
            ask()
    code = "try: merge(root, ['a'], 'q', None)\nexcept StorageError as e: print(e)"
    with program(code, s3_root) as process:
        assert re.search(said, ends(process))
    credentials("NEWKEY")
    assert root.read("x") == b"1"


def test_a_storage_error_survives_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(StorageError("the disk is full")))
    assert (str(error), isinstance(error, OSError)) == ("the disk is full", True)
    trip = RayTaskError("put", "trace", error).as_instanceof_cause()
    assert isinstance(trip, AdboosterError)


def parts(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".*") if p.name.startswith((".part-", ".copying-"))]


def test_a_full_disk_below_the_root(small_disk, tmp_path):
    """Said, with nothing half-written left; the next run goes on once there is room."""
    root = Root(str(small_disk / "root"))
    merge(root, ["a"], "first", None)
    kept = root.put(b"pixels", "webp")
    (tmp_path / "big").write_bytes(b"x" * 10**7)
    (small_disk / "fill").write_bytes(b"x" * 1_400_000)
    for ask in (
        lambda: root.write("runs/r/staged/part", bytes(10**6)),
        lambda: root.put(os.urandom(10**6), "webp"),
        lambda: root.put_file(tmp_path / "big", "weights/1/unet"),
        lambda: root.create("locks/x", bytes(10**6)),
    ):
        with pytest.raises(StorageError, match="the disk of .*root is full.*make room and run again"):
            ask()
    (small_disk / "more").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize))
    with pytest.raises(StorageError, match="the disk of .*tables/cohorts is full"):
        merge(root, [f"{i:05}" for i in range(2000)], "second", 0)
    assert not parts(small_disk)
    assert list(root.stats("objects")) == [kept]
    assert live(root) == {"a": "first"}
    (small_disk / "fill").unlink()
    assert merge(root, ["b"], "second", 0) == 1
    assert live(root) == {"a": "first", "b": "second"}


def test_a_disk_that_says_full_wherever_it_is_written(root, monkeypatch, tmp_path):
    """The error injected at the lowest call that writes, where no disk can be mounted."""
    source = tmp_path / "file"
    source.write_bytes(b"x")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        disk.setattr("shutil.copyfile", full)
        for ask in (
            lambda: root.write("a/b", b"1"),
            lambda: root.create("a/b", b"1"),
            lambda: root.put_file(source, "a/b"),
        ):
            with pytest.raises(StorageError, match=r"is full \(No space left on device\)"):
                ask()
    assert not root.exists("a/b")
    assert not parts(Path(root.uri))


def test_a_full_disk_of_a_nodes_model_cache(small_disk, s3_root, tmp_path, monkeypatch):
    """Said with the folder and the size; a model unused for a day makes room though the limit is not reached."""
    monkeypatch.setenv("ADBOOSTER_CACHE", str(small_disk))
    root, old = Root(s3_root), Root(s3_root)
    root.write("models/big.onnx", b"x" * 1_500_000)
    old.write("models/old.onnx", b"y" * 1_000_000)
    kept = model_store.local_copy(f"{s3_root}/models/old.onnx")
    with pytest.raises(
        StorageError, match=r"model cache .*disk \(0.00 GiB for s3://.*big.onnx; ADBOOSTER_CACHE .*is full"
    ):
        model_store.local_copy(f"{s3_root}/models/big.onnx")
    assert kept.exists()
    assert not parts(small_disk)
    long_ago = time.time() - node_cache.IN_USE_S - 3600
    os.utime(kept, (long_ago, long_ago))
    assert model_store.local_copy(f"{s3_root}/models/big.onnx").stat().st_size == 1_500_000
    assert not kept.exists()


def test_a_pull_on_a_full_temporary_folder(small_disk, s3_root, root, monkeypatch):
    Root(s3_root).write("big.onnx", bytes(3 * 10**6))
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(StorageError, match=r"the temporary folder .*disk \(TMPDIR moves it\) is full"):
        model_store.pull(root, f"{s3_root}/big.onnx")
    assert root.names("models") == []
    assert list(small_disk.iterdir()) == []


def test_a_bucket_that_refuses_deletes_and_wants_checksums(s3, s3_root, caplog):
    """Object lock with a policy: jobs begin, nights lock and publish, vacuum removes nothing and says so."""
    root = Root(s3_root)
    for i in range(lock.KEPT + 2):
        root.write(lock._name(i + 1), b"{}")
    root.write(lock._name(lock.KEPT + 2), _released(lock.KEPT + 2).model_dump_json().encode())
    with program(PUBLISH + "publish(root, ['old', 'kept'])", s3_root) as process:
        ends(process)
    s3.use(Faults(locked=True))
    root.check_writable()
    with NightLock(root, "night") as held:
        assert held.claim.number == lock.KEPT + 3
    orphan = root.put(b"named by nothing", "webp")
    root.clear("locks/night")
    code = (
        f"{PUBLISH}publish(root, ['new'], delete=['old'])\nprint(sorted(r['creative_id'] for r in tables.read(root, 'creatives').to_pylist()))\n"
        "done = vacuum(root, timedelta(0), force=True)\nprint(done.refused, done.objects, done.table_files, done.size_bytes)"
    )
    with program(code, s3_root) as process:
        assert ends(process) == "['kept', 'new']\n3 0 0 0\n"
    assert root.exists(orphan)
    assert "unchecked" not in s3.faults.counts
    assert len([r for r in caplog.records if "does not allow files to be removed" in r.message]) == 1, "said once"


def _released(number: int) -> lock.Claim:
    now = lock._now()
    facts = {"token": "t", "run_id": "r", "host": "h", "pid": 1, "machine": "", "released": True}
    return lock.Claim(number=number, since=now, renewed_at=now, expires_at=now + timedelta(seconds=9), **facts)


JUMPS = [timedelta(hours=1), timedelta(hours=-1)]


@pytest.fixture(params=["disk", "s3"])
def where(request, tmp_path):
    return Root(str(tmp_path / "root") if request.param == "disk" else request.getfixturevalue("s3_root"))


@pytest.mark.parametrize("jump", JUMPS, ids=["forward", "back"])
def test_a_contender_whose_clock_jumped_takes_no_live_lock(where, jump, monkeypatch):
    with NightLock(where, "first", ttl_s=2):
        real = lock._now
        monkeypatch.setattr(lock, "_now", lambda: real() + jump)
        with pytest.raises(LockHeld, match="night first"), NightLock(where, "second", ttl_s=2):
            pass


@pytest.mark.parametrize("jump", JUMPS, ids=["forward", "back"])
def test_a_lock_left_behind_by_a_wrong_clock_is_free_after_its_time(where, jump, monkeypatch):
    """A holder whose clock was an hour ahead kept the next night out for an hour; an hour behind, its lock was free at once."""
    real, ttl_s = lock._now, 2 if where.is_local else 4
    with monkeypatch.context() as wrong:
        wrong.setattr(lock, "_now", lambda: real() + jump)
        with NightLock(where, "killed", ttl_s) as killed:
            claim = killed.claim.model_copy(update={"machine": "another machine"})
    where.write(lock._name(claim.number), claim.model_dump_json().encode())
    with pytest.raises(LockHeld, match="night killed"), NightLock(where, "too soon", ttl_s):
        pass
    time.sleep(ttl_s + (0.1 if where.is_local else 1.1))  # S3 stamps whole seconds
    with NightLock(where, "second", ttl_s) as now:
        assert now.claim.number == 2


@pytest.mark.parametrize("jump", JUMPS, ids=["forward", "back"])
def test_a_storage_whose_clock_jumps_frees_no_live_lock(s3, s3_root, jump):
    """Stamps made before the jump then look old or lie in the future: the lock is watched, and it is renewed."""
    root = Root(s3_root)
    with NightLock(root, "first", ttl_s=1.5):
        s3.use(Faults(clock_s=jump.total_seconds()))
        assert abs(root.now() - time.time() - jump.total_seconds()) < 10
        with pytest.raises(LockHeld, match="night first"), NightLock(root, "second", ttl_s=1.5):
            pass


def test_a_lock_stamped_in_the_future_is_watched_for_all_its_time(root):
    with NightLock(root, "killed", ttl_s=1.5) as killed:
        claim = killed.claim.model_copy(update={"machine": "another machine"})
    root.write(lock._name(claim.number), claim.model_dump_json().encode())
    later = time.time() + 3600
    os.utime(root.path(lock._name(claim.number)), (later, later))
    started = time.monotonic()
    with NightLock(root, "second", ttl_s=1.5) as now:
        assert now.claim.number == 2
    assert time.monotonic() - started > 1.4


def test_vacuum_by_a_wrong_clock_removes_nothing(s3, s3_root):
    root = Root(s3_root)
    orphan = root.put(b"named by nothing", "webp")
    with program(PUBLISH + "publish(root, ['a'])", s3_root) as process:
        ends(process)
    s3.use(Faults(clock_s=-3600))
    with pytest.raises(ConfigError, match=r"-60 minutes off .*\(NTP\)"):
        vacuum(root, timedelta(0), force=True)
    assert root.exists(orphan)


def test_a_clock_that_s3_refuses_is_said(s3, s3_root):
    root = Root(s3_root)
    root.write("x", b"1")
    s3.use(Faults(clock_s=3600, checks_clock=True))
    said = r"the clock of this machine and that of s3://.* are more than 15 minutes apart.*\(NTP\)"
    with pytest.raises(StorageError, match=said):
        root.read("x")
    with program("try: merge(root, ['a'], 'q', None)\nexcept StorageError as e: print(e)", s3_root) as process:
        assert re.search(said, ends(process))


NIGHT = """
with NightLock(root, "first", ttl_s=1.5) as held:
    base = tables.version(root, "cohorts")
    print("ready")
    input()
    try:
        print(merge(root, ["first"], "q", base))
    except AdboosterError as e:
        print(type(e).__name__, e)
"""


def test_a_driver_that_was_paused_longer_than_its_lock_publishes_nothing(where):
    """SIGSTOP, as a suspended machine: its process lives, its lock does not."""
    merge(where, ["a"], "q", None)
    with program(NIGHT, where.uri) as paused:
        assert paused.stdout.readline() == "ready\n"
        paused.send_signal(signal.SIGSTOP)
        time.sleep(2.6)
        with NightLock(where, "second", ttl_s=1.5):
            paused.stdin.write("\n")
            paused.send_signal(signal.SIGCONT)
            assert "LockLost" in ends(paused)
            assert merge(where, ["second"], "q", 0) == 1
    assert set(live(where)) == {"a", "second"}
    assert lock.newest(where).run_id == "second"


def test_a_driver_that_was_paused_and_missed_by_nobody_goes_on(root):
    merge(root, ["a"], "q", None)
    with program(NIGHT, root.uri) as paused:
        assert paused.stdout.readline() == "ready\n"
        paused.send_signal(signal.SIGSTOP)
        time.sleep(2)
        paused.send_signal(signal.SIGCONT)
        paused.stdin.write("\n")
        assert ends(paused) == "1\n"


def test_a_driver_cut_off_from_the_storage_loses_its_lock_and_publishes_nothing(s3, s3_root, s3_endpoint):
    """Its side of the network is gone for longer than the lock; a night on the other side takes over."""
    with program("merge(root, ['a'], 'q', None)", s3_root) as process:
        ends(process)
    with program(NIGHT, s3_root) as cut_off:
        assert cut_off.stdout.readline() == "ready\n"
        s3.use(Faults(cut=1.0))
        other_side = (
            "time.sleep(2.6)\nwith NightLock(root, 'second', ttl_s=1.5):\n    print('holds')\n    input()\n"
            "    print(merge(root, ['second'], 'q', 0))"
        )
        with program(other_side, s3_root, AWS_ENDPOINT_URL=s3_endpoint) as second:
            assert second.stdout.readline() == "holds\n"
            cut_off.stdin.write("\n")
            time.sleep(0.5)
            s3.use(Faults())
            assert "LockLost" in ends(cut_off)
            second.stdin.write("\n")
            assert ends(second) == "1\n"
    assert set(live(Root(s3_root))) == {"a", "second"}
