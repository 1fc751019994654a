"""`jobs.generate` or `jobs.deliver` as an operator's driver runs it: a process and a cluster of its own, which a test may kill.

python -m tests.chaos_driver '{"job": "generate", "config": "<file>.yaml", "witness": "<file>", "pause_s": 0.5, "nodes": 0}'

Every request that a stage begins leaves a line in the witness file: request, pid, node, time. With `nodes` the job
runs on a `ray.cluster_utils.Cluster` of a head without CPUs and so many workers, and the node that paints is killed
after its second call, without a word to it.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

os.environ["RAY_AUTH_MODE"] = "disabled"

import psutil
import ray

from adbooster.cli import main as run_job
from adbooster.deliver import job as delivery
from adbooster.deliver.config import DeliverConfig
from adbooster.generate import rounds
from adbooster.generate.config import GenerateConfig

JOBS = {
    "generate": (GenerateConfig, "adbooster.generate.job:generate"),
    "deliver": (DeliverConfig, "adbooster.deliver.job:deliver"),
}


class Witnessed:
    """A stage that says what it begins, by whom and on which node (its raylet's pid), and then takes its time."""

    def __init__(self, of: type, witness: str, pause_s: float, **init):
        self.stage, self.witness, self.pause_s = of(**init), witness, pause_s

    def __call__(self, rows):
        node = int(os.environ["RAY_RAYLET_PID"])
        line = {"pid": os.getppid(), "node": node, "at": time.time(), "stage": type(self.stage).__name__}
        with open(self.witness, "a") as f:
            f.write("".join(json.dumps(line | {"request": r}) + "\n" for r in requests_in(rows)))
        done = self.stage(rows)
        time.sleep(self.pause_s)
        return done


def requests_in(rows) -> list[str]:
    """What a painting is for: `<request_id>/<round>`; a later round is another painting. Of a rendition, its id."""
    if "rendition_id" in rows.column_names:
        return rows["rendition_id"].to_pylist()
    ids = rows["request_id"].to_pylist()
    rounds = rows["round"].to_pylist() if "round" in rows.column_names else [0] * len(ids)
    return [f"{request_id}/{number}" for request_id, number in zip(ids, rounds, strict=True)]


@contextmanager
def witnessing(witness: str, pause_s: float = 0):
    """Whatever `generate` and `deliver` send through a pool is witnessed."""
    real = rounds.through
    added: dict = {"witness": witness, "pause_s": pause_s}
    rounds.through = delivery.through = lambda ds, stage, *rest, **init: real(
        ds, Witnessed, *rest, of=stage, **added, **init
    )
    try:
        yield
    finally:
        rounds.through = delivery.through = real


def seen(witness: str) -> list[dict]:
    """The lines of a witness file, oldest first."""
    return [json.loads(line) for line in open(witness)] if os.path.exists(witness) else []


def kill(driver: subprocess.Popen) -> None:
    """kill -9 of a driver; returns when nothing that it started is left."""
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    agents = [p for p in started if p.is_running() and "Agent" in p.name()]  # outlive their driver; do no work
    _, left = psutil.wait_procs(set(started) - set(agents), timeout=30)
    assert not left, f"outlived its driver: {left}"
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()


def start_cluster(nodes: int, witness: str) -> None:
    from ray.cluster_utils import Cluster

    # Its own folder: the address file of /tmp/ray would be every Ray's of this machine.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="adb", dir="/tmp")
    os.makedirs(f"{os.environ['RAY_TMPDIR']}/ray")
    quiet = {"include_dashboard": False, "object_store_memory": 150 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    workers = [cluster.add_node(num_cpus=3, object_store_memory=150 * 2**20) for _ in range(nodes)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    cluster.wait_for_nodes()

    def kill_the_painting_node():
        while len({line["at"] for line in seen(witness)}) < 3:
            time.sleep(0.05)
        time.sleep(0.3)  # what was painted before is staged by now
        painting = seen(witness)[-1]["node"]
        victim = next(w for w in workers if w.all_processes["raylet"][0].process.pid == painting)
        print(f"killing node {painting} at {time.time()}", file=sys.stderr, flush=True)
        cluster.remove_node(victim, allow_graceful=False)

    threading.Thread(target=kill_the_painting_node, daemon=True).start()


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["nodes"]:
        start_cluster(settings["nodes"], settings["witness"])
    with witnessing(settings["witness"], settings["pause_s"]):
        run_job(*JOBS[settings.get("job", "generate")], ["--config", settings["config"]])


if __name__ == "__main__":  # as the module that the stages' processes import, not as a second copy of it
    from tests import chaos_driver

    chaos_driver.main()
