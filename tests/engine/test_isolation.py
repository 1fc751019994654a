"""A row that fails, kills, hangs or swells is one rejected row; what is not a row's doing ends the job at once."""

import json
import os
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Pool
from adbooster.engine.isolation import SAME, Failures, Isolated, StageProcess, pickled
from adbooster.engine.pools import dataset, through
from adbooster.storage.objects import Root
from tests.engine.stages import ROWS, Breaker, Copier, Hostile, Slow

BATCH = 16


def rows(n: int = BATCH, first: int = 0) -> pa.Table:
    return pa.table({"n": range(first, first + n), "reject": pa.nulls(n, pa.string())}, ROWS)


@pytest.fixture
def process():
    one = StageProcess()
    yield one
    one.end()


@pytest.fixture
def hostile(root, tmp_path, process):
    """Makes an isolated stage of deeds by row number."""

    def make(deeds: dict[int, str], row_timeout_s: float = 60.0, max_row_gib: float = 4.0, stage=Hostile, **init):
        init = {"deeds": deeds, "folder": str(tmp_path)} | init if stage is Hostile else init
        pool = Pool(row_timeout_s=row_timeout_s, max_row_gib=max_row_gib)
        failures = Failures(root, "night", "failed_mask")
        return Isolated("Masker", pickled(stage, init), ROWS, pool, failures, process)

    return make


def words(table: pa.Table) -> dict[int, str]:
    assert table.schema == ROWS
    assert table["n"].to_pylist() == sorted(table["n"].to_pylist()), "rows keep their order"
    return {row["n"]: row["reject"] for row in table.to_pylist() if row["reject"]}


def notes(root: Root) -> dict[int, dict]:
    found = [json.loads(root.read(f"runs/night/failures/{name}")) for name in root.files("runs/night/failures")]
    return {note["row"]["n"]: note for note in found}


def test_an_exception_stays_with_its_row(root, hostile):
    done = hostile({3: "fails", 11: "misses_a_file"})(rows())
    assert done.num_rows == BATCH
    assert words(done) == {3: "failed_mask", 11: "failed_mask"}
    note = notes(root)[3]
    assert (note["stage"], note["error"]) == ("Masker", "ValueError: row 3 did not converge")
    assert "in _fails" in note["traceback"]


def test_a_row_that_ends_its_process_is_found_within_a_few_deaths(root, hostile, process):
    started = count_starts(process)
    done = hostile({5: "crashes"})(rows())
    assert words(done) == {5: "crashed"}
    assert started() == 1 + 3, "the batch, and the row alone twice"
    assert notes(root)[5]["ended"] == "SIGSEGV"


def test_an_exit_is_a_death(root, hostile):
    assert words(hostile({0: "exits"})(rows(2))) == {0: "crashed"}
    assert notes(root)[0]["ended"] == "exit code 7"


def test_a_death_that_does_not_happen_again_is_blamed_on_no_row(root, hostile):
    assert words(hostile({5: "crashes_once"})(rows())) == {}
    assert words(hostile({1: "crashes_once"})(rows(1, first=1))) == {}
    assert notes(root) == {}


@pytest.mark.parametrize("deed", ["hangs", "hangs_in_native_code"])
def test_a_row_that_does_not_end_is_one_row(root, hostile, deed):
    stage, began = hostile({6: deed}, row_timeout_s=1.0), time.monotonic()
    assert words(stage(rows(8))) == {6: "timed_out"}
    assert time.monotonic() - began < 60
    assert notes(root)[6]["ended"] == "no answer after 1 s"


def test_a_row_that_swells_is_one_row(root, hostile):
    assert words(hostile({2: "swells"}, max_row_gib=0.5)(rows(4))) == {2: "too_large"}
    assert notes(root)[2]["ended"] == "grew by more than 0.5 GiB"
    assert words(hostile({2: "wants_all_memory"})(rows(4))) == {2: "too_large"}


def test_what_a_stage_loads_counts_neither_as_time_nor_as_memory(hostile):
    assert words(hostile({1: "loads"}, row_timeout_s=1.5, max_row_gib=0.4)(rows(2))) == {}


def test_slow_batches_are_not_slow_rows(hostile):
    """What takes a tenth of a second a row is never rejected under half a second, and soon not halved either."""
    stage = hostile({}, row_timeout_s=0.5, stage=Slow)
    assert words(stage(rows(BATCH))) == {}
    assert stage(rows(4)).num_rows == 4
    process = stage.process._popen
    assert words(stage(rows(BATCH))) == {}
    assert stage.process._popen is process, "the whole batch was given its time"


@pytest.mark.parametrize(
    ("deed", "error", "says"),
    [
        ("lacks_a_setting", ConfigError, "size_px is 0"),
        ("finds_no_gpu_memory", RuntimeError, "CUDA error"),
        ("fills_the_disk", OSError, "No space left"),
        ("fails_on_the_storage", OSError, "folder"),
    ],
)
def test_errors_of_the_machine_end_the_job_at_once(tmp_path, root, hostile, deed, error, says):
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=says) as raised:
        hostile({9: deed})(rows())
    assert "in __call__" in "".join(raised.value.__notes__), "with the traceback of the stage's process"
    assert notes(root) == {}


def test_the_same_error_on_every_row_is_not_the_rows(hostile):
    stage = hostile({-1: "fails"})
    assert len(words(stage(rows(SAME - 1)))) == SAME - 1
    with pytest.raises(ValueError, match="did not converge"):
        stage(rows(1, first=SAME))


def test_many_rows_that_fail_after_one_succeeded_are_rows(hostile):
    stage = hostile(dict.fromkeys(range(1, 60), "fails"))
    assert len(words(stage(rows(60)))) == 59


def test_a_stage_that_cannot_be_built_ends_the_job(hostile):
    with pytest.raises(RuntimeError, match="built for a row"):
        hostile({}, stage=Breaker)(rows())


def test_without_a_place_for_failures_every_failure_ends_the_job(process):
    for deed, says in (("fails", "did not converge"), ("crashes", "Masker ended: crashed, SIGSEGV")):
        stage = Isolated("Masker", pickled(Hostile, {"deeds": {3: deed}}), ROWS, Pool(), None, process)
        with pytest.raises((ValueError, RuntimeError), match=says):
            stage(rows())


def test_a_process_serves_one_stage_after_another(hostile, process):
    hostile({})(rows(1))
    first = process._popen
    assert words(hostile({0: "fails"})(rows(1))) == {0: "failed_mask"}
    assert process._popen is first


def test_the_process_ends_with_its_actor(hostile, process):
    hostile({})(rows(1))
    pid = process._popen.pid
    process.end()
    assert not psutil.pid_exists(pid)


def test_a_process_whose_actor_was_killed_ends_by_itself(tmp_path):
    """In place of an actor, a process that is killed without a chance to clean up."""
    import subprocess
    import sys

    code = (
        "import os, signal\n"
        "from adbooster.contracts.settings import Pool\n"
        "from adbooster.engine.isolation import Isolated, StageProcess, pickled\n"
        "from tests.engine.stages import ROWS, Copier\n"
        "from tests.engine.test_isolation import rows\n"
        "stage = Isolated('s', pickled(Copier, {}), ROWS, Pool(), None, StageProcess())\n"
        "stage(rows(1))\n"
        "print(stage.process._popen.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    ends = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_in_a_pool_one_such_row_costs_a_few_deaths(local_ray, root):
    """The pool of the first version died 26 times in 150 seconds on such a row, and had no end."""
    deeds = {3: "crashes", 17: "fails", 25: "hangs"}
    failures = Failures(root, "night", "failed_mask")
    pool = Pool(actors=2, batch=8, row_timeout_s=2)
    ds = through(dataset(rows(32), 8), Hostile, pool, ROWS, failures, deeds=deeds)
    found = pa.concat_tables(ds.iter_batches(batch_size=None, batch_format="pyarrow"))
    rejects = {row["n"]: row["reject"] for row in found.to_pylist()}
    assert sorted(rejects) == list(range(32))
    assert {n: word for n, word in rejects.items() if word} == {3: "crashed", 17: "failed_mask", 25: "timed_out"}
    assert sorted(notes(root)) == [3, 17, 25]


def test_an_actor_does_not_import_what_its_stage_needs(process):
    """Networks and their libraries are in the stage's process alone."""
    stage = Isolated("s", pickled(Copier, {}), ROWS, Pool(), None, process)
    stage(rows(1))
    maps = Path(f"/proc/{process._popen.pid}/maps").read_text()
    assert "pyarrow" in maps
    assert "ray/_raylet" not in maps, "and Ray in the actor alone"
    assert process._popen.pid != os.getpid()


def count_starts(process: StageProcess):
    starts, begin = [], process._start

    def start() -> None:
        starts.append(1)
        begin()

    process._start = start
    return lambda: len(starts)


def test_a_note_of_a_failed_row_has_no_pixels(tmp_path):
    root = Root(str(tmp_path))
    row = {
        "request_id": "r1",
        "texts": ["a"],
        "places": [{"alpha": b"\0" * 1000}],
        "pixels": b"1",
        "known": {},
        "n": None,
    }
    Failures(root, "r", "failed_paint").note("Painter", row, "failed_paint")
    (name,) = root.files("runs/r/failures")
    assert json.loads(root.read(f"runs/r/failures/{name}"))["row"] == {"request_id": "r1", "texts": ["a"], "n": None}
