"""Three nodes that each meet S3 through a door of their own, and what may be done to them while a night runs."""

import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1")
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

import psutil

from adbooster.contracts.errors import ConfigError
from adbooster.storage.maintenance import MaintainConfig, maintain
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import MINIMUM, vacuum
from tests import chaos_driver
from tests.faults import Faults, FaultyS3

PAUSE_S = 0.3  # after each request, so that moments fall into painting too and not only into starting
KILLS = ("worker", "node", "driver")
ACTS = ("compaction", "vacuum", "rollback")  # of an operator, beside the night
PAUSES = {"driver_paused": (3, 15), "raylet_paused": (3, 80)}  # shortest and longest, s
SPELLS = {"slow_down": (10, 40), "no_storage": (5, 20), "node_without_storage": (5, 20), "credentials_expire": (0, 5)}
LASTING = {"refused_deletes": {"locked": True}, "clock_ahead": {"clock_s": 3600}, "clock_behind": {"clock_s": -3600}}
RAY = {
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_health_check_period_ms": "500",  # a dead node is known after two seconds, a slow one is left alone
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "15000",
}


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Processes started in this block have these; null: not this one."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def night(settings: dict) -> None:
    """`jobs.generate`, then `jobs.deliver`, in a process that may be killed."""
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _set(settings["environment"])
    logging.disable(logging.NOTSET)
    with chaos_driver.witnessing(settings["witness"], PAUSE_S):
        for job, run_id in settings["jobs"].items():
            chaos_driver.run_job(*chaos_driver.JOBS[job], ["--config", settings["config"], "--run-id", run_id])


def act(kind: str, root: Root) -> bool:
    """An operator's act; whether there was anything to do."""
    if kind == "vacuum":
        vacuum(root, MINIMUM)
        return True
    if kind == "compaction":
        told = maintain(MaintainConfig(root_uri=root.uri, run_id="compaction", small_files=2, history_days=None))
        return bool(told.compacted)
    try:
        rollback(root, "creatives", 0)
    except ConfigError:  # it is what is live
        return False
    return True


def operate(kind: str, uri: str, settings: dict) -> None:
    """An act in a process of its own; exit code 0: it was done, 3: there was nothing to do, 1: an error, as of the storage."""
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _set(settings["environment"])
    sys.exit(0 if act(kind, Root(uri)) else 3)


def nothing() -> None:
    pass


class ThreeNodes:
    """A head and two nodes that paint; each node, and the driver, meets S3 through a proxy of its own."""

    def __init__(self, upstream: str, folder: Path):
        from ray.cluster_utils import Cluster

        self.folder, self.upstream, self.faults = folder, upstream, Faults()
        self.open, self.doors = ExitStack(), {}
        self.door = self._door("driver")
        self.renew("KEY0")
        self.environment = {
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "RAY_TMPDIR": str(folder),
            **RAY,
        }
        (folder / "ray").mkdir()
        with self._environment(self.door):
            quiet = {"include_dashboard": False, "object_store_memory": 150 * 2**20}
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
            self.processes = multiprocessing.get_context("forkserver")
            self.processes.set_forkserver_preload(["adbooster.painting.painter", "tests.chaos_driver"])
        self.whole()

    def _door(self, of: str) -> FaultyS3:
        self.doors[of] = self.open.enter_context(FaultyS3(self.upstream, replace(self.faults, counts={})))
        return self.doors[of]

    @contextmanager
    def _environment(self, door: FaultyS3, **more: str) -> Iterator[None]:
        """Of processes that meet S3 through this door, with credentials from the file only."""
        without = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
        with environment(**without, AWS_ENDPOINT_URL=door.endpoint, **self.environment, **more):
            yield

    def renew(self, key: str) -> None:
        """New credentials in the file that everyone reads."""
        self.key, new = key, self.folder / "credentials.new"
        new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\naws_session_token = t\n")
        new.replace(self.folder / "credentials")

    def use(self, faults: Faults) -> None:
        """At every door, from now on; what the doors had counted is forgotten."""
        self.faults = faults
        for i, door in enumerate(self.doors.values()):
            door.use(replace(faults, seed=faults.seed + i, counts={}))

    def change(self, of: str = "", **faults: object) -> None:
        """Of the faults at every door, or at one."""
        for name, door in self.doors.items():
            if of in ("", name):
                door.faults = replace(door.faults, **faults)  # its counts and its generator go on
        if not of:
            self.faults = replace(self.faults, **faults)

    def counts(self) -> dict[str, int]:
        return dict(sum((Counter(door.faults.counts) for door in self.doors.values()), Counter()))

    def whole(self) -> None:
        """Two nodes again, as an autoscaler would see to it."""
        while len(self.cluster.worker_nodes) < 2:
            door = self._door("new")
            with self._environment(door):
                node = self.cluster.add_node(num_cpus=3, num_gpus=1, object_store_memory=150 * 2**20)
            self.doors[node.node_id] = self.doors.pop("new")
        self.cluster.wait_for_nodes()

    def start(self, settings: dict) -> multiprocessing.Process:
        return self._beside(night, settings)

    def operate(self, kind: str, uri: str, settings: dict) -> multiprocessing.Process:
        """One of ACTS, through the driver's door."""
        return self._beside(operate, settings, kind, uri)

    def _beside(self, do: Callable, settings: dict, *first: str) -> multiprocessing.Process:
        with self._environment(self.door, RAY_ADDRESS=self.cluster.address):
            names = ("AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            taken = {name: os.environ.get(name) for name in names}  # a forked process has those of an earlier time
            run = self.processes.Process(target=do, args=(*first, settings | {"environment": taken}), daemon=True)
            run.start()
        return run

    def disturb(
        self, kind: str, run: multiprocessing.Process, witness: str, chance: random.Random
    ) -> tuple[bool, float, Callable[[], None]]:
        """Something of a kind: whether there was anything to do it to, and after how many seconds it is undone, and how."""
        for_s = chance.uniform(*(PAUSES | SPELLS).get(kind, (0, 0)))
        if kind in KILLS:
            return self.kill(kind, run, witness, chance), 0, nothing
        if kind in LASTING:
            self.change(**LASTING[kind])
            return True, 0, nothing
        if kind in PAUSES:
            return self._pause(kind, run, self._painting(witness, chance), for_s)
        if kind == "credentials_expire":
            new = f"KEY{int(self.key[3:]) + 1}"
            self.change(expired=frozenset({self.key}))
            return True, for_s, lambda: self.renew(new)
        if kind == "node_without_storage":
            node = self._painting(witness, chance)
            self.change(node.node_id, cut=1.0)
            return True, for_s, lambda: self.change(node.node_id, cut=0.0)
        share = {"slow_down": "slow_down", "no_storage": "cut"}[kind]
        self.change(**{share: 1.0})
        return True, for_s, lambda: self.change(**{share: 0.0})

    def _painting(self, witness: str, chance: random.Random):
        """The node that painted last, or one that may."""
        nodes = sorted(self.cluster.worker_nodes, key=lambda n: n.node_id)
        seen = chaos_driver.seen(witness)
        return next(
            (n for n in nodes if seen and n.all_processes["raylet"][0].process.pid == seen[-1]["node"]),
            chance.choice(nodes),
        )

    def _pause(
        self, kind: str, run: multiprocessing.Process, node, for_s: float
    ) -> tuple[bool, float, Callable[[], None]]:
        pids = [raylet.process.pid for raylet in node.all_processes["raylet"]]
        if kind == "driver_paused":
            pids = [run.pid] if run.exitcode is None and run.pid else []
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        return bool(pids), for_s, go_on

    def close(self) -> None:
        self.cluster.shutdown()
        self.open.close()

    def kill(self, kind: str, run: multiprocessing.Process, witness: str, chance: random.Random) -> bool:
        """SIGKILL to one of a kind; False if there was none to kill."""
        if kind == "driver":
            if run.exitcode is None:
                run.kill()
                return True
            return False
        if kind == "worker":
            return self._kill_worker(chance)
        nodes = sorted(self.cluster.worker_nodes, key=lambda n: n.node_id)
        if len(nodes) < 2:  # somewhere the night has to go on
            return False
        self.cluster.remove_node(self._painting(witness, chance), allow_graceful=False)
        return True

    def _kill_worker(self, chance: random.Random) -> bool:
        workers = []
        for node in self.cluster.worker_nodes:
            raylets = [psutil.Process(p.process.pid) for p in node.all_processes["raylet"]]
            for process in (child for raylet in raylets for child in raylet.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    title = " ".join(process.cmdline())[:60]
                    if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title:
                        workers.append(process)
        with suppress(psutil.NoSuchProcess, IndexError):
            chance.choice(sorted(workers, key=lambda p: p.pid)).kill()
            return True
        return False


@contextmanager
def s3_server() -> Iterator[str]:
    """moto in a process of its own with a bucket `chaos`; only nodes and drivers meet it through a proxy."""
    import s3fs

    port = 20000 + os.getpid() % 9000
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            time.sleep(0.2)
        with environment(AWS_ENDPOINT_URL=endpoint):
            s3fs.S3FileSystem(endpoint_url=endpoint).mkdir("chaos")
            yield endpoint
    finally:
        server.terminate()
        server.wait()
