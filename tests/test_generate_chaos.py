"""Kill what paints, where it runs, and who waits for it: the night after is the night that nothing disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from adbooster import generate, images, schema, tables
from adbooster.objects import Root
from adbooster.tiny import world
from tests.chaos_driver import seen, witnessing
from tests.conftest import row
from tests.faults import Faults, FaultyS3
from tests.test_generate import config

REPO = Path(__file__).parents[1]
CONTEXTS = ("a spooky halloween night", "a snowy winter day", "a tropical beach holiday", "a football stadium")
PAINT = {"actors": 1, "batch": 1}
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
    assert generate.generate(config(root, "calm", paint=PAINT)).published == 8
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


def staged(root: Root, run_id: str) -> dict[str, float]:
    """When each request's first whole part was there, by request_id."""
    times: dict[str, float] = {}
    for name, stat in root.stats(f"runs/{run_id}/staged").items():
        part = tables._part(root, name) if name.endswith(".parquet") else None
        for request_id in part["request_id"].to_pylist() if part else []:
            times[request_id] = min(times.get(request_id, stat.modified), stat.modified)
    return times


class Driver:
    """`jobs.generate` in a process of its own that a test may kill; the painter pauses `pause_s` after each request."""

    def __init__(self, root: Root, run_id: str, witness: Path, nodes: int = 0, pause_s: float = 0.4, **env: str):
        night = witness.with_suffix(f".{run_id}.yaml")
        night.write_text(json.dumps(config(root, run_id, paint=PAINT).model_dump(mode="json")))
        settings = {"config": str(night), "witness": str(witness)}
        self.witness, self.root, self.run_id = str(witness), root, run_id
        self.log = witness.with_suffix(f".{run_id}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos_driver", json.dumps(settings | {"pause_s": pause_s, "nodes": nodes})],
            cwd=REPO,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | env,
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
        """kill -9 of the driver; returns when nothing that it started is left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        agents = [p for p in started if p.is_running() and "Agent" in p.name()]  # outlive their driver; paint nothing
        _, left = psutil.wait_procs(set(started) - set(agents), timeout=30)
        assert not left, f"outlived its driver: {left}"
        for agent in agents:
            with suppress(psutil.NoSuchProcess):
                agent.kill()

    def report(self) -> dict:
        out, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, self.said()
        return json.loads(out.strip().splitlines()[-1])

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()[-3000:]


def nothing_painted_after_it_was_staged(root: Root, run_id: str, witness: str) -> None:
    """No line of the witness names a request whose part had been there before."""
    at = staged(root, run_id)
    late = [line for line in seen(witness) if line["at"] > at.get(line["request_id"], float("inf"))]
    assert not late


def killed_driver(root: Root, undisturbed: Root, witness: Path, here: bool = False, **env: str) -> None:
    """`here`: the run after it in this process, which has a Ray already."""

    def rerun() -> dict:
        if not here:
            return Driver(root, "again", witness, pause_s=0, **env).report()
        with witnessing(str(witness)):
            return generate.generate(config(root, "again", paint=PAINT)).model_dump()

    driver = Driver(root, "killed", witness, **env)
    driver.wait_for_parts(2)
    driver.kill()
    assert tables.version(root, "creatives") is None, "nothing half-done is live"
    before, there = len(seen(driver.witness)), set(staged(root, "killed"))
    assert 2 <= len(there) < 8
    again = rerun()
    assert (again["already_staged"], again["painted"], again["published"]) == (len(there), 8 - len(there), 8)
    assert not there & {line["request_id"] for line in seen(driver.witness)[before:]}, "painted though it was staged"
    equals_the_undisturbed(root, undisturbed)


def killed_worker(root: Root, undisturbed: Root, witness: Path, **env: str) -> None:
    driver = Driver(root, "night", witness, **env)
    driver.wait_for_parts(2)
    os.kill(seen(driver.witness)[-1]["pid"], signal.SIGKILL)
    assert driver.report()["published"] == 8
    assert len({line["pid"] for line in seen(driver.witness)}) == 2, "another worker went on"
    nothing_painted_after_it_was_staged(root, "night", driver.witness)
    equals_the_undisturbed(root, undisturbed)


def killed_node(root: Root, undisturbed: Root, witness: Path, **env: str) -> None:
    driver = Driver(root, "night", witness, nodes=2, **env)
    assert driver.report()["published"] == 8
    assert "killing node" in driver.said()
    assert len({line["node"] for line in seen(driver.witness)}) == 2, "another node went on"
    nothing_painted_after_it_was_staged(root, "night", driver.witness)
    equals_the_undisturbed(root, undisturbed)


KILLS = {"driver": killed_driver, "worker": killed_worker, "node": killed_node}


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
        KILLS[kill](root, undisturbed, tmp_path / "witness", AWS_ENDPOINT_URL=s3.endpoint)
        assert s3.faults.counts.keys() >= {"refused", "lost", "reset"}, s3.faults.counts
