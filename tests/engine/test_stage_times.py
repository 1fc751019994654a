"""Who waits for whom: what actors spend their time on is measured where they run, and a wasteful night says so."""

import threading
import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adbooster.contracts.settings import Pool
from adbooster.engine import stage_process, stage_times
from adbooster.engine.pools import dataset, through
from adbooster.engine.staging import stage_parts
from tests.engine.stages import NICED, ROWS, Networked


def rows(n):
    return pa.table({"n": range(n), "reject": [None] * n}, ROWS)


def test_time_in_networks_is_counted_once_however_many_threads_are_in(monkeypatch):
    told = []
    monkeypatch.setattr(stage_process, "count", lambda name, value: told.append((name, value)))

    def work():
        with stage_process.in_network():
            time.sleep(0.2)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert {name for name, _ in told} == {stage_process.NETWORK_S}
    assert 0.28 < sum(value for _, value in told) < 0.45


def test_a_run_writes_what_its_stages_waited_for(local_ray, root):
    """A slow stage behind a fast one: the fast one's network share is low, and its rows and seconds are those it had."""
    times = stage_times.start()
    ds = through(dataset(rows(12), 2), Networked, Pool(batch=2), NICED, times=times, network_s=0.1, other_s=0.1)
    staged = stage_parts(ds, root, "runs/r/staged/x")
    found = stage_times.write(root, "r", "job", times, [staged.blocked_s])["Networked"]
    assert stage_times.read(root, "r") == {"job": {"Networked": found}}
    assert (found["rows"], found["calls"], found["actors"]) == (12, 6, 1)
    assert found["network_s"] == pytest.approx(0.6, abs=0.2)
    assert found["other_s"] > 0.55
    assert found["loading_s"] > 0
    spent = sum(found[f"{name}_s"] for name in ("network", "other", "input_wait", "output_wait"))
    assert found["network_share"] == pytest.approx(found["network_s"] / spent, abs=0.01)
    assert found["network_share"] < 0.6
    assert found["ended_s"] > found["began_s"]
    stage_times.write(root, "r", "another", stage_times.start(), [])
    assert set(stage_times.read(root, "r")) == {"job"}, "a job without stages leaves no trace"


def stage(**changes):
    return {"gpus": 1.0, "network_s": 100.0, "other_s": 10.0, "input_wait_s": 300.0, "output_wait_s": 20.0} | changes


def test_a_night_that_wastes_its_gpus_says_what_to_change():
    (line,) = stage_times.wasted({"Painter": stage(network_share=0.23), "Finisher": stage(gpus=0, network_share=0.0)})
    assert "Painter" in line
    assert "23%" in line
    assert "stage before it" in line
    (line,) = stage_times.wasted({"Painter": stage(network_share=0.23, output_wait_s=400.0)})
    assert "stage after it" in line
    assert stage_times.wasted({"Painter": stage(network_share=0.9)}) == []
    assert stage_times.wasted({"Painter": stage(network_share=0.1, input_wait_s=10.0)}) == [], "too short to tell"


def test_what_was_never_measured_is_no_error(root):
    assert stage_times.read(root, "never") == {}


def test_stages_give_way_as_their_pool_says(local_ray, root):
    ds = through(dataset(rows(2), 2), Networked, Pool(batch=2, niceness=4), NICED, network_s=0, other_s=0)
    plain = through(dataset(rows(2), 2), Networked, Pool(batch=2), NICED, network_s=0, other_s=0)
    nice, usual = (stage_parts(d, root, f"runs/r/staged/{i}").rows[0] for i, d in enumerate((ds, plain)))
    assert pc.min(nice["niceness"]).as_py() == pc.min(usual["niceness"]).as_py() + 4
