"""Kill what paints, where it runs, and who waits for it: the night after is the night that nothing disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.generate import rounds
from adbooster.generate.job import generate
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import vacuum
from adbooster.tiny import world
from tests.chaos_driver import kill, requests_in, seen, witnessing
from tests.conftest import row
from tests.faults import Faults, FaultyS3
from tests.generate.test_generate import RECIPE, config

REPO = Path(__file__).parents[2]
CONTEXTS = ("a spooky halloween night", "a snowy winter day", "a tropical beach holiday", "a football stadium")
PAINT = {"actors": 1, "batch": 1}
NIGHT = {"paint": PAINT, "paint_batch": 2}  # a request fills a pass, so that each is a block and a part of its own
MAY_DIFFER = {"run_id", "gpu_s"}


def stock(root: Root) -> Root:
    """Two products with true masks and four cohorts: eight requests."""
    samples = []
    for key in ("teapot", "running-shoe"):
        photo, mask = world.packshot(key, 256)
        uri = root.put(images.encode_lossless(photo), "photo")
        named = {"sample_id": key, "product_id": key, "role": "main", "title": key, "category": "Home"}
        names = {"photo_uri": uri, "photo_sha256": uri[11:75], "mask_uri": root.put(images.encode_mask(mask), "png")}
        samples.append(row(schema.SAMPLES, **named, **names, caption=f"a {key} on a white background"))
    cohorts = [
        row(schema.COHORTS, cohort_id=f"c{i}", family="events", query="a gift", context=c, interests=[], version="1")
        for i, c in enumerate(CONTEXTS)
    ]
    tables.merge(root, "samples", pa.Table.from_pylist(samples, schema.SAMPLES), "sample_id", None, {})
    tables.merge(root, "cohorts", pa.Table.from_pylist(cohorts, schema.COHORTS), "cohort_id", None, {})
    return root


@pytest.fixture(scope="module")
def undisturbed(local_ray, tmp_path_factory):
    """A root after a night that nothing disturbed."""
    root = stock(Root(str(tmp_path_factory.mktemp("undisturbed"))))
    assert generate(config(root, "calm", **NIGHT)).published == 8
    return root


def live(root: Root) -> list[dict]:
    """The live table, but for the columns that say who painted and how long it took."""
    rows = tables.read(root, "creatives").drop_columns(sorted(MAY_DIFFER)).to_pylist()
    return sorted(rows, key=lambda r: r["creative_id"])


def equals_the_undisturbed(root: Root, undisturbed: Root) -> None:
    assert live(root) == live(undisturbed)
    assert set(root.stats("objects")) == set(undisturbed.stats("objects"))
    assert all(root.read(name) == undisturbed.read(name) for name in undisturbed.stats("objects"))
    painted = [r for r in live(root) if not r["fallback"]]
    assert len(painted) > 3, "the pictures are painted ones"


def part_of(root: Root, name: str) -> list[str]:
    """The requests of a whole part; none of one that is being written."""
    try:
        return requests_in(pap.read_table(pa.BufferReader(root.read(name))))
    except pa.ArrowInvalid:
        return []


def staged(root: Root, run_id: str) -> dict[str, float]:
    """When each request's first whole part was there."""
    times: dict[str, float] = {}
    for name, stat in root.stats(f"runs/{run_id}/staged").items():
        for request in part_of(root, name):
            times[request] = min(times.get(request, stat.modified), stat.modified)
    return times


class Driver:
    """`jobs.generate` in a process of its own that a test may kill; the painter pauses `pause_s` after each request."""

    def __init__(self, root: Root, run_id: str, witness: Path, s3=None, nodes: int = 0, pause_s: float = 0.4):
        night = witness.with_suffix(f".{run_id}.yaml")
        night.write_text(json.dumps(config(root, run_id, **NIGHT).model_dump(mode="json")))
        settings = {"config": str(night), "witness": str(witness)}
        self.witness, self.root, self.run_id = str(witness), root, run_id
        self.log = witness.with_suffix(f".{run_id}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos_driver", json.dumps(settings | {"pause_s": pause_s, "nodes": nodes})],
            cwd=REPO,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
            | ({"AWS_ENDPOINT_URL": s3.endpoint} if s3 else {}),
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def wait_for_parts(self, n: int) -> None:
        end = time.monotonic() + 120
        while len(staged(self.root, self.run_id)) < n:
            assert time.monotonic() < end, "nothing was staged in two minutes"
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)

    def kill(self) -> None:
        kill(self.process)

    def report(self) -> dict:
        out, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, self.said()
        return json.loads(out.strip().splitlines()[-1])

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-3000:]


def nothing_painted_after_it_was_staged(
    root: Root, witness: str, s3: FaultyS3 | None, node_died: float | None = None
) -> None:
    """No line of the witness names a request whose part had been there before.

    But for one: what a dying node staged last, if its word of it died with it.
    On S3 a part is there when its first PUT was acknowledged; what S3 itself says of it is cut to whole seconds.
    """
    at = staged(root, "night")
    if s3:
        puts = [(when, path) for when, method, path, status in s3.done if method == "PUT" and status == 200]
        names = {name: part_of(root, name) for name in root.stats("runs/night/staged")}
        at = {
            request: min(when for when, path in puts if name.rsplit("/", 1)[-1] in path)
            for name, requests in names.items()
            for request in requests
        }
    assert len(at) >= 8
    late = [at[line["request"]] for line in seen(witness) if line["at"] > at[line["request"]]]
    assert [staged_at for staged_at in late if node_died is None or staged_at < node_died - 0.1] == []
    assert len(late) <= 1


def killed_driver(root: Root, undisturbed: Root, witness: Path, s3=None, here: bool = False) -> None:
    """`here`: the run after it in this process, which has a Ray already."""

    def rerun() -> dict:
        if not here:
            return Driver(root, "again", witness, s3=s3, pause_s=0).report()
        with witnessing(str(witness)):
            return generate(config(root, "again", **NIGHT)).model_dump()

    driver = Driver(root, "killed", witness, s3=s3)
    driver.wait_for_parts(2)
    driver.kill()
    assert tables.version(root, "creatives") is None, "nothing half-done is live"
    before, there = len(seen(driver.witness)), set(staged(root, "killed"))
    assert 2 <= len(there) < 8
    again = rerun()
    assert (again["already_staged"], again["painted"], again["published"]) == (len(there), 8 - len(there), 8)
    assert not there & {line["request"] for line in seen(driver.witness)[before:]}, "painted though it was staged"
    equals_the_undisturbed(root, undisturbed)


def painters(witness: str) -> list[int]:
    """Pids of the actors that painted, oldest call first."""
    return [line["pid"] for line in seen(witness) if line["stage"] == "Painter"]


def killed_worker(root: Root, undisturbed: Root, witness: Path, s3: FaultyS3 | None = None) -> None:
    driver = Driver(root, "night", witness, s3=s3)
    end = time.monotonic() + 120
    while len(painters(driver.witness)) < 3:  # before it has painted all, which finishing follows some requests behind
        assert time.monotonic() < end, driver.said()
        time.sleep(0.05)
    os.kill(painters(driver.witness)[-1], signal.SIGKILL)
    assert driver.report()["published"] == 8
    assert len(set(painters(driver.witness))) == 2, "another worker went on"
    nothing_painted_after_it_was_staged(root, driver.witness, s3)
    equals_the_undisturbed(root, undisturbed)


def killed_node(root: Root, undisturbed: Root, witness: Path, s3: FaultyS3 | None = None) -> None:
    driver = Driver(root, "night", witness, s3=s3, nodes=2, pause_s=0.8)
    assert driver.report()["published"] == 8
    died = re.search(r"killing node \w+ at ([\d.]+)", driver.said())
    assert died, "no node was killed"
    assert len({line["node"] for line in seen(driver.witness)}) == 2, "another node went on"
    nothing_painted_after_it_was_staged(root, driver.witness, s3, float(died[1]))
    equals_the_undisturbed(root, undisturbed)


KILLS = {"driver": killed_driver, "worker": killed_worker, "node": killed_node}


@pytest.mark.slow
def test_a_killed_driver_on_disk(undisturbed, tmp_path):
    killed_driver(stock(Root(str(tmp_path / "root"))), undisturbed, tmp_path / "witness", here=True)


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["worker", "node"])
def test_a_kill_on_disk(undisturbed, tmp_path, kill):
    KILLS[kill](stock(Root(str(tmp_path / "root"))), undisturbed, tmp_path / "witness")


@pytest.mark.slow
@pytest.mark.parametrize("kill", list(KILLS))
def test_a_kill_on_s3_that_fails(undisturbed, tmp_path, s3_root, s3_endpoint, kill):
    """One request in ten is refused, done and not acknowledged, reset, or slow."""
    root = stock(Root(s3_root))
    with FaultyS3(s3_endpoint, Faults(refused=0.04, lost=0.03, reset=0.02, slow=0.01)) as s3:
        KILLS[kill](root, undisturbed, tmp_path / "witness", s3)
        assert s3.faults.counts.keys() >= {"refused", "lost", "reset"}, s3.faults.counts


def test_of_two_runs_at_once_one_is_live(undisturbed, warm_ray, tmp_path, monkeypatch):
    """Another recipe's run plans and commits while this one paints: this one says so, and nothing of it is live."""
    root = copy_of(undisturbed, tmp_path)
    real, other = rounds.stage_parts, []

    def another_run_commits(*painted, **how):
        staged = real(*painted, **how)
        if not other:
            other.append(None)
            other.append(generate(config(root, "other", **NIGHT, recipe=seeded(2))))
        return staged

    monkeypatch.setattr(rounds, "stage_parts", another_run_commits)
    with pytest.raises(PublishConflict, match="another run has committed since"):
        generate(config(root, "late", **NIGHT, recipe=seeded(1)))
    assert set(tables.read(root, "creatives")["run_id"].to_pylist()) == {"other"}
    assert tables.version(root, "creatives") == other[1].creatives_version == 1


def test_a_night_after_a_rollback_and_a_vacuum_brings_back_what_was_undone(undisturbed, warm_ray, tmp_path):
    root = copy_of(undisturbed, tmp_path)
    first = live(root)
    cohorts = tables.read(root, "cohorts").to_pylist()
    changed = [c | {"context": "a rainy street", "version": "2"} for c in cohorts if c["cohort_id"] == "c2"]
    tables.merge(root, "cohorts", pa.Table.from_pylist(changed, schema.COHORTS), "cohort_id", 0, {})
    assert generate(config(root, "second", **NIGHT)).painted == 2
    second = live(root)
    vacuum(root, timedelta(days=7))
    assert rollback(root, "creatives", 0).objects
    assert live(root) == first
    assert all(root.exists(r["uri"]) for r in first)
    third = generate(config(root, "third", **NIGHT))
    assert (third.already_live, third.published, third.creatives_version) == (6, 2, 3)
    assert live(root) == second
    vacuum(root, timedelta(0), force=True)
    assert all(root.read(r["uri"]) for r in live(root))
    assert generate(config(root, "fourth", **NIGHT)).painted == 0


def copy_of(root: Root, tmp_path: Path) -> Root:
    shutil.copytree(root.uri, tmp_path / "root")
    return Root(str(tmp_path / "root"))


def seeded(seed: int) -> dict:
    return RECIPE | {"seed": seed}
