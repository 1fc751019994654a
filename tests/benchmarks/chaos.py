"""Nights on three nodes, disturbed at random moments, against the night that nothing disturbed.

    python -m tests.benchmarks.chaos --seeds 20 --out chaos.jsonl                  every seed once; a table at the end
    python -m tests.benchmarks.chaos --seeds 20 --out chaos.jsonl --minutes 3      as many as fit, the rest next time

A cluster of a head without CPUs and two nodes with a CPU pool and a (pretended) GPU each runs `jobs.generate` as an
operator's driver, a process of its own, against an S3 that fails. Each seed draws shares of failing requests and two
to four of the kinds below with their moments, over the time that the undisturbed night took. A run that does not end well
is started again with the same command. Then the live table but for `run_id` and `gpu_s`, and every object by name and
bytes, are compared with the undisturbed ones.

kills (SIGKILL)     a painting worker, the node that paints, the driver
pauses (SIGSTOP)    the driver; the raylet of the node that paints, so that its workers have S3 and no head
storage, a while    503 SlowDown for every request; no connection; no connection from the node that paints, which has a head
storage, to the end credentials that expire, their file renewed seconds later; a bucket that refuses deletes and puts without
                    checksums; a storage whose clock jumps an hour forward or back

Each seed is one line of the file; a file that has a seed is not asked for it again. Exit code 1 if anything differed.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
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
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests import chaos_driver
from tests.faults import SHARES, Faults, FaultyS3

MODELS = Path(world.__file__).parent / "models"
CONTEXTS = ("a spooky halloween night", "a snowy winter day", "a tropical beach holiday", "a football stadium")
RECIPE = {"candidates": 2, "num_inference_steps": 2, "guidance_scale": 2.0, "size_px": 256, "paint_px": 64}
MAY_DIFFER = {"run_id", "gpu_s"}
PAUSE_S = 0.3  # after each request, so that moments fall into painting too and not only into starting
TOO_LONG_S, MOST_RUNS = 300, 8
KILLS = ("worker", "node", "driver")
PAUSES = {"driver_paused": (3, 15), "raylet_paused": (3, 80)}  # shortest and longest, s
SPELLS = {"slow_down": (10, 40), "no_storage": (5, 20), "node_without_storage": (5, 20), "credentials_expire": (0, 5)}
LASTING = {"refused_deletes": {"locked": True}, "clock_ahead": {"clock_s": 3600}, "clock_behind": {"clock_s": -3600}}
KINDS = (*KILLS, *PAUSES, *SPELLS, *LASTING)
S3_FAULTS = (*SHARES, "expired", "denied", "unchecked")
RAY = {
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_health_check_period_ms": "500",  # a dead node is known after two seconds, a slow one is left alone
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_timeout_ms": "15000",
}


def stock(root: Root) -> None:
    """Two products with true masks and four cohorts: eight requests."""
    samples, cohorts = [], []
    for key in ("teapot", "running-shoe"):
        photo, mask = world.packshot(key, 256)
        uri = root.put(images.encode_lossless(photo), "photo")
        known = {"sample_id": key, "product_id": key, "role": "main", "title": key, "category": "Home"}
        known |= {"photo_uri": uri, "photo_sha256": uri[11:75], "mask_uri": root.put(images.encode_mask(mask), "png")}
        samples.append(dict.fromkeys(schema.SAMPLES.names) | known | {"caption": f"a {key} on a white background"})
    for i, context in enumerate(CONTEXTS):
        known = {"cohort_id": f"c{i}", "family": "events", "query": "a gift", "context": context, "version": "1"}
        cohorts.append(dict.fromkeys(schema.COHORTS.names) | known | {"interests": []})
    for name, rows, key in (("samples", samples, "sample_id"), ("cohorts", cohorts, "cohort_id")):
        tables.merge(root, name, pa.Table.from_pylist(rows, tables.TABLES[name]), key, None, {})


def digest(root: Root) -> dict:
    """What is live, and every object: equal for equal nights."""
    rows = tables.read(root, "creatives").drop_columns(sorted(MAY_DIFFER)).to_pylist()
    rows = json.dumps(sorted(rows, key=lambda r: r["creative_id"]), sort_keys=True, default=str)
    objects = {name: hashlib.sha256(root.read(name)).hexdigest() for name in sorted(root.stats("objects"))}
    return {"rows": hashlib.sha256(rows.encode()).hexdigest(), "n": rows.count('"creative_id"'), "objects": objects}


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
    """One run of `jobs.generate`, in a process that may be killed."""
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _set(settings["environment"])
    logging.disable(logging.NOTSET)
    with chaos_driver.witnessing(settings["witness"], PAUSE_S):
        chaos_driver.run_job(
            chaos_driver.GenerateConfig, "adbooster.generate.job:generate", ["--config", settings["config"]]
        )


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
        with self._environment(self.door, RAY_ADDRESS=self.cluster.address):
            names = ("AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            taken = {name: os.environ.get(name) for name in names}  # a forked process has those of an earlier time
            run = self.processes.Process(target=night, args=(settings | {"environment": taken},), daemon=True)
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


class Chaos:
    """Nights of `seeds` below one bucket, each against the undisturbed one."""

    def __init__(self, nodes: ThreeNodes, calm: dict | None = None, kinds: tuple[str, ...] = KINDS):
        self.nodes, self.kinds = nodes, kinds
        self.calm = calm or self._undisturbed()

    def _prepare(self, name: str) -> tuple[Root, dict]:
        root = Root(f"s3://chaos/{name}-{time.time_ns()}")
        stock(root)
        folder = self.nodes.folder
        settings = {"witness": f"{folder}/{name}.witness", "log": f"{folder}/{name}.log"}
        return root, settings

    def _run(self, root: Root, settings: dict, run_id: str) -> multiprocessing.Process:
        config = {
            "root_uri": root.uri,
            "run_id": run_id,
            "weights": str(MODELS / "outpaint"),
            "rank_model": str(MODELS / "rank"),
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "paint": {"actors": 1, "gpus": 1, "batch": 1},
            "paint_batch": 2,  # a request fills a pass: each is a block and a part of its own
            "recipe": RECIPE,
        }
        file = Path(self.nodes.folder) / f"{Path(settings['log']).stem}.{run_id}.yaml"
        file.write_text(json.dumps(config))
        return self.nodes.start(settings | {"config": str(file)})

    def _undisturbed(self) -> dict:
        """The night that all are compared with: what is live after it, and its seconds once the cluster is warm."""
        for name in ("warm", "calm"):
            root, settings = self._prepare(name)
            started = time.monotonic()
            run = self._run(root, settings, "calm")
            run.join(TOO_LONG_S)
            if run.exitcode != 0:
                raise SystemExit(f"the undisturbed night failed: {Path(settings['log']).read_text()[-3000:]}")
            calm = digest(root) | {"night_s": round(time.monotonic() - started, 2)}
        assert calm["n"] == 8, calm["n"]
        return calm

    def seed(self, seed: int) -> dict:
        """One disturbed night, to its end: what was done to it, its runs, and whether the result differs."""
        chance = random.Random(seed)
        shares = {kind: round(chance.uniform(0, 0.04), 4) for kind in ("refused", "lost", "reset", "slow")}
        kinds = chance.sample(self.kinds, min(len(self.kinds), chance.randint(2, 4)))
        due = sorted((chance.uniform(0, 0.95) * self.calm["night_s"], kind) for kind in kinds)
        root, settings = self._prepare(f"seed{seed}")
        self.nodes.whole()
        self.nodes.use(Faults(**shares, seed=seed))
        undo: list[tuple[float, Callable[[], None]]] = []
        started, met, codes, late = time.monotonic(), Counter(), [], False
        while len(codes) < MOST_RUNS and (not codes or codes[-1] != 0):
            run, began = self._run(root, settings, f"run{len(codes)}"), time.monotonic()
            passed = 0.0
            while run.exitcode is None:
                passed = time.monotonic() - began
                while due and due[0][0] <= passed and run.exitcode is None:
                    kind = due.pop(0)[1]
                    done, for_s, back = self.nodes.disturb(kind, run, settings["witness"], chance)
                    met[kind] += done
                    undo.append((time.monotonic() + for_s, back))
                    if kind == "driver":
                        run.join()
                undo = _undone(undo)
                if passed > TOO_LONG_S:
                    run.kill()
                    run.join()
                    late = True
                run.join(0.05)
            codes.append(run.exitcode)
            due = [(max(0.0, at - passed), kind) for at, kind in due]
            self.nodes.whole()
        for _, back in undo:
            back()
        faults = self.nodes.counts()
        self.nodes.use(Faults())
        found = digest(root) if codes[-1] == 0 else {}
        same = all(found.get(k) == self.calm[k] for k in ("rows", "n", "objects"))
        if not same or late:
            print(f"seed {seed}: {Path(settings['log']).read_text()[-4000:]}", file=sys.stderr)
        seconds = round(time.monotonic() - started, 1)
        told = {"seed": seed, "met": dict(+met), "s3": faults, "exit_codes": codes, "seconds": seconds}
        return told | {"differs": not same, "too_late": late}


def _undone(undo: list[tuple[float, Callable[[], None]]]) -> list[tuple[float, Callable[[], None]]]:
    """Undo what has lasted its time; what is left."""
    now = time.monotonic()
    for at, back in undo:
        if at <= now:
            back()
    return [(at, back) for at, back in undo if at > now]


def table(lines: list[dict]) -> str:
    """All seeds in one table, by kind of fault."""
    met, s3 = Counter(), Counter()
    for line in lines:
        met.update(line["met"])
        s3.update(line["s3"])
    runs = sum(len(line["exit_codes"]) for line in lines)
    hurt = sum(1 for line in lines if line["met"])
    rows = [("seeds", len(lines)), ("seeds with a fault that met something", hurt)]
    rows += [(f"{kind} killed" if kind in KILLS else kind, met[kind]) for kind in KINDS]
    rows += [(f"S3 requests {kind}", s3[kind]) for kind in S3_FAULTS]
    rows += [("runs", runs), ("runs that had to be started again", runs - len(lines))]
    rows += [("longest seed, s", max(line["seconds"] for line in lines))]
    rows += [("differences", sum(line["differs"] for line in lines))]
    rows += [("runs that did not end in time", sum(line["too_late"] for line in lines))]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


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


def run(
    seeds: list[int],
    lines: list[dict],
    calm: dict | None = None,
    until: float = float("inf"),
    kinds: tuple[str, ...] = KINDS,
) -> Iterator[dict]:
    """Lines of a file: the undisturbed night unless `calm` is it, then each seed that is not in `lines`."""
    todo = [seed for seed in seeds if seed not in {line["seed"] for line in lines}]
    if not todo:
        return
    with tempfile.TemporaryDirectory(prefix="adb", dir="/tmp") as folder, s3_server() as endpoint:
        nodes = ThreeNodes(endpoint, Path(folder))
        try:
            chaos = Chaos(nodes, calm, kinds)
            if not calm:
                yield {"calm": chaos.calm}
            for seed in todo:
                if time.monotonic() > until:
                    return
                yield chaos.seed(seed)
        finally:
            nodes.close()


def main() -> int:
    parser = argparse.ArgumentParser("tests.benchmarks.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("chaos.jsonl"))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no seed after so long")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}"
    )
    told = parser.parse_args()
    known = [json.loads(line) for line in told.out.read_text().splitlines()] if told.out.exists() else []
    calm = next((line["calm"] for line in known if "calm" in line), None)
    lines = list({line["seed"]: line for line in known if "seed" in line}.values())
    seeds = list(range(told.first, told.first + told.seeds))
    for line in run(seeds, lines, calm, time.monotonic() + 60 * told.minutes, tuple(told.kinds)):
        with told.out.open("a") as f:
            f.write(json.dumps(line) + "\n")
        if "seed" in line:
            lines.append(line)
        print(json.dumps(line if "seed" in line else {"undisturbed_s": line["calm"]["night_s"]}), flush=True)
    print(table(lines) if lines else "no seed yet")
    return int(any(line["differs"] or line["too_late"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
