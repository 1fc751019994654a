"""Kill the process that delivers: the run after it makes the rest, and the table is that of a run that nothing disturbed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adbooster.contracts import schema
from adbooster.deliver.job import deliver
from adbooster.deliver.plan import staged_folder
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests import chaos_driver
from tests.deliver.conftest import config
from tests.deliver.pictures import publish

REPO = Path(__file__).parents[2]


def start(settings, witness: Path) -> subprocess.Popen:
    """`jobs.deliver` in a process of its own, a rendition a part, with a pause after each."""
    file = witness.with_suffix(".yaml")
    file.write_text(json.dumps(settings.model_dump(mode="json")))
    told = {"job": "deliver", "config": str(file), "witness": str(witness), "pause_s": 0.3, "nodes": 0}
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"ADBOOSTER_LOCAL_CPUS": "2"}
    with witness.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "tests.chaos_driver", json.dumps(told)]
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log)


def staged(root, run_id: str) -> set[str]:
    return set(tables.read_staged(root, staged_folder(run_id), schema.RENDITIONS)["rendition_id"].to_pylist())


def live(root) -> list[dict]:
    rows = tables.read(root, "deliveries").drop_columns(["run_id"]).to_pylist()
    return sorted(rows, key=lambda row: row["delivery_id"])


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_driver_killed_half_way_is_gone_on_with_by_the_next_run(root, small, rendered, tmp_path):
    channels, undisturbed = small("meta", "web"), Root(str(tmp_path / "undisturbed"))
    for there in (root, undisturbed):
        publish(there, products=("P1", "P2", "P3"), cohorts=("c1", "c2"))
    witness = tmp_path / "witness"
    driver = start(config(root, channels, render={"batch": 1}), witness)
    end = time.monotonic() + 120
    while len(staged(root, "d1")) < 5:
        said = witness.with_suffix(".log")
        assert time.monotonic() < end, said.read_text()[-3000:]
        assert driver.poll() is None, said.read_text()[-3000:]
        time.sleep(0.1)
    chaos_driver.kill(driver)
    assert tables.version(root, "deliveries") is None, "nothing half-done is live"
    assert not root.stats("delivery")
    there, begun = staged(root, "d1"), {line["request"] for line in chaos_driver.seen(str(witness))}
    assert there <= begun

    report = deliver(config(root, channels, run_id="d2"))
    deliver(config(undisturbed, channels, run_id="d2"))
    again, whole = ({*call["rendition_id"].to_pylist()} for call in rendered)
    assert 5 <= len(there) < len(whole) - 5, "killed half-way"
    assert again == whole - there
    assert (report.to_render, report.rendered) == (len(again), len(again))
    assert live(root) == live(undisturbed)
    assert root.stats("objects").keys() == undisturbed.stats("objects").keys()
    assert all(root.read(name) == undisturbed.read(name) for name in undisturbed.stats("objects"))
