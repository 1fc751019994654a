import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.measure import measurements
from adbooster.storage import tables
from tests import fake_measurements


def asked(found):
    return pa.table({"look_id": found["look_id"]})


def stager(root, run_id, found, taken):
    """Stages those rows of `found` that are asked for, and notes how many."""

    def take(rows):
        taken.append(rows.num_rows)
        some = found.filter(pc.is_in(found["look_id"], rows["look_id"]))
        buffer = pa.BufferOutputStream()
        pap.write_table(some, buffer)
        root.write(f"{measurements.staged_folder(run_id)}/{len(taken)}.parquet", buffer.getvalue().to_pybytes())

    return take


def test_only_what_is_not_known_is_looked_at(root):
    found, taken = fake_measurements.looks(), []
    first = measurements.known_or_measured(root, "r1", asked(found.slice(0, 10)), stager(root, "r1", found, taken))
    measurements.store(root, "r1", [first])
    root.write("runs/r1/report.json", b"{}")
    root.clear("runs/r1/staged")
    again = measurements.known_or_measured(root, "r2", asked(found), stager(root, "r2", found, taken))
    assert taken == [10, 14]
    assert again["look_id"].to_pylist() == found["look_id"].to_pylist()
    assert again.drop_columns(["gpu_s"]).equals(found.drop_columns(["gpu_s"]))


def test_what_a_killed_run_staged_is_used(root):
    found, taken = fake_measurements.looks(), []
    stager(root, "killed", found, [])(asked(found.slice(0, 20)))
    measurements.known_or_measured(root, "r", asked(found), stager(root, "r", found, taken))
    assert taken == [4]


def test_a_look_that_failed_is_tried_again_and_not_kept(root):
    found = fake_measurements.looks(products=1, cohorts=2, reject=lambda p, c: "unreadable_image" if c else None)
    taken = []
    first = measurements.known_or_measured(root, "r1", asked(found), stager(root, "r1", found, taken))
    assert first["reject"].to_pylist() == [None, "unreadable_image"]
    measurements.store(root, "r1", [first])
    assert tables.read(root, "looks").num_rows == 1
    measurements.known_or_measured(root, "r2", asked(found), stager(root, "r2", found, taken))
    assert taken == [2, 1]


def test_looks_of_creatives_that_are_gone_are_dropped_and_those_of_trials_stay(root):
    of_creatives = fake_measurements.looks(products=1, creative_id=lambda p, c: f"cr{c}")
    of_trials = fake_measurements.looks(products=1, look_id=lambda p, c: f"t{c}")
    measurements.store(root, "r", [of_creatives, of_trials], pa.array(["cr0", "cr1", "cr2", "cr3"]))
    measurements.store(root, "r", [schema.LOOKS.empty_table()], pa.array(["cr1"]))
    left = tables.read(root, "looks", ["look_id"])["look_id"].to_pylist()
    assert sorted(left) == ["0-1", "t0", "t1", "t2", "t3"]


def test_nothing_new_is_no_commit(root):
    found = fake_measurements.looks()
    measurements.store(root, "r", [found])
    measurements.store(root, "r", [found])
    assert tables.version(root, "looks") == 0
    measurements.store(root, "r", [schema.LOOKS.empty_table()])
