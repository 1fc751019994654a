"""Nights on three nodes, disturbed at random moments, against the night that nothing disturbed.

    python -m tests.benchmarks.chaos --seeds 20 --out chaos.jsonl                  every seed once; a table at the end
    python -m tests.benchmarks.chaos --seeds 20 --out chaos.jsonl --minutes 3      as many as fit, the rest next time

A cluster of a head without CPUs and two nodes with a CPU pool and a (pretended) GPU each runs `jobs.generate` and, for two
channels, `jobs.deliver` as an operator's driver, a process of its own, against an S3 that fails. Each seed draws shares of
failing requests and two to four of the kinds below with their moments, over the time that the undisturbed night took. A run
that does not end well is started again with the same command. Then the live creatives and deliveries but for `run_id` and `gpu_s`, the channels' feeds
but for their runs and times, and every object by name and bytes, are compared with the undisturbed ones; a feed may name
only what is delivered.

kills (SIGKILL)     a painting worker, the node that paints, the driver
pauses (SIGSTOP)    the driver; the raylet of the node that paints, so that its workers have S3 and no head
storage, a while    503 SlowDown for every request; no connection; no connection from the node that paints, which has a head
storage, to the end credentials that expire, their file renewed seconds later; a bucket that refuses deletes and puts without
                    checksums; a storage whose clock jumps an hour forward or back
an operator's acts  beside the night: a compaction of all tables with two files, a vacuum, a rollback of the creatives to their
                    first version, after which one more run has to bring back what was undone

Each seed is one line of the file; a file that has a seed is not asked for it again. Exit code 1 if anything differed.
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks.chaos_nodes import ACTS, KILLS, LASTING, PAUSES, SPELLS, ThreeNodes, s3_server
from tests.deliver.conftest import small_channels
from tests.faults import SHARES, Faults

MODELS = Path(world.__file__).parent / "models"
CONTEXTS = ("a spooky halloween night", "a snowy winter day", "a tropical beach holiday", "a football stadium")
RECIPE = {"candidates": 2, "num_inference_steps": 2, "guidance_scale": 2.0, "size_px": 256, "paint_px": 64}
MAY_DIFFER, POINTER_MAY_DIFFER = {"run_id", "gpu_s"}, {"run_id", "published_at", "deliveries_version"}
CHANNELS = ("meta", "web")  # at a fifth of their sizes
TOO_LONG_S, MOST_RUNS = 300, 8
KINDS = (*KILLS, *PAUSES, *SPELLS, *LASTING, *ACTS)
S3_FAULTS = (*SHARES, "expired", "denied", "unchecked")


def stock(root: Root) -> None:
    """Two products with true masks and four cohorts: eight requests; a live creative of each product, which is out of date."""
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
    creatives = []
    for sample in samples:
        known = {"creative_id": f"old {sample['product_id']}", "request_id": "old", "product_id": sample["product_id"]}
        known |= {"cohort_id": "old", "rank": 0, "uri": root.put(b"out of date", "webp"), "fallback": False}
        known |= {"gpu_s": 0.1, "run_id": "old", "recipe_id": "old", "weights_revision": "old", "placement": ""}
        creatives.append(dict.fromkeys(schema.CREATIVES.names) | known)
    tables.merge(root, "creatives", schema.CREATIVES.empty_table(), "creative_id", None, {})
    stocked = {
        "samples": (samples, "sample_id"),
        "cohorts": (cohorts, "cohort_id"),
        "creatives": (creatives, "creative_id"),
    }
    for name, (rows, key) in stocked.items():
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):  # a file each
            made = pa.Table.from_pylist(half, tables.TABLES[name])
            tables.merge(root, name, made, key, tables.version(root, name), {})


def digest(root: Root) -> dict:
    """What is live, what channels are given, and every object: equal for equal nights."""
    creatives, deliveries = (tables.read(root, name) for name in ("creatives", "deliveries"))
    objects = {name: hashlib.sha256(root.read(name)).hexdigest() for name in sorted(root.stats("objects"))}
    delivered = {uri for uri in deliveries["uri"].to_pylist() if uri}
    return {
        "rows": rows_digest(creatives, "creative_id"),
        "n": creatives.num_rows,
        "deliveries": rows_digest(deliveries, "delivery_id"),
        "delivered": len(delivered),
        "feeds": feeds(root),
        "fetched": {name: found for name, found in feeds(root).items() if re.search(r"/feed\.\w+$", name)},
        "dangling": sorted(named_in_feeds(root) - (delivered & objects.keys())),
        "objects": objects,
    }


def rows_digest(rows: pa.Table, key: str) -> str:
    """Of a table's rows, but for what says who made them and how long it took."""
    kept = rows.drop_columns([name for name in rows.column_names if name in MAY_DIFFER]).to_pylist()
    text = json.dumps(sorted(kept, key=lambda r: r[key]), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def feeds(root: Root) -> dict[str, str]:
    """Every file below delivery/ by name and digest, the pointers but for the run that wrote them and when."""
    found = {}
    for name in sorted(root.stats("delivery")):
        content = root.read(name)
        if name.endswith("/latest.json"):
            pointer = {k: v for k, v in json.loads(content).items() if k not in POINTER_MAY_DIFFER}
            content = json.dumps(pointer, sort_keys=True).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def named_in_feeds(root: Root) -> set[str]:
    """The objects whose addresses are in the files that channels fetch."""
    fetched = (root.read(name).decode() for name in root.stats("delivery") if re.search(r"/feed\.\w+$", name))
    return {uri for text in fetched for uri in re.findall(r"objects/\w\w/\w+\.\w+", text)}


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
        generate = {
            "weights": str(MODELS / "outpaint"),
            "rank_model": str(MODELS / "rank"),
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "paint": {"actors": 1, "gpus": 1, "batch": 1},
            "paint_batch": 2,  # a request fills a pass: each is a block and a part of its own
            "recipe": RECIPE,
        }
        deliver = {
            "channels": small_channels(self.nodes.folder, *CHANNELS),
            "public_base_url": "https://cdn.shop.example/ads",
            "render": {"batch": 4},
        }
        file = Path(self.nodes.folder) / f"{Path(settings['log']).stem}.{run_id}.yaml"
        file.write_text(json.dumps({"root_uri": root.uri, "generate": generate, "deliver": deliver}))
        jobs = {"generate": run_id, "deliver": f"{run_id}-delivery"}
        return self.nodes.start(settings | {"config": str(file), "jobs": jobs})

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
        assert calm["delivered"] > 8, calm
        assert not calm["dangling"], calm["dangling"]
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
        started, met, codes, late, undone = time.monotonic(), Counter(), [], False, False
        while len(codes) < MOST_RUNS and (not codes or codes[-1] != 0 or undone):
            run, began = self._run(root, settings, f"run{len(codes)}"), time.monotonic()
            passed, acts = 0.0, []
            while run.exitcode is None or any(act.exitcode is None for _, act in acts):
                passed = time.monotonic() - began
                while due and due[0][0] <= passed and run.exitcode is None:
                    kind = due.pop(0)[1]
                    if kind in ACTS:
                        acts.append((kind, self.nodes.operate(kind, root.uri, settings)))
                        continue
                    done, for_s, back = self.nodes.disturb(kind, run, settings["witness"], chance)
                    met[kind] += done
                    undo.append((time.monotonic() + for_s, back))
                    if kind == "driver":
                        run.join()
                undo = _undone(undo)
                if passed > TOO_LONG_S:
                    for process in (run, *(act for _, act in acts)):
                        process.kill()
                        process.join()
                    late = True
                run.join(0.05)
            codes.append(run.exitcode)
            did = [kind for kind, act in acts if act.exitcode == 0]
            met.update(did)
            undone = "rollback" in did
            due = [(max(0.0, at - passed), kind) for at, kind in due]
            self.nodes.whole()
        for _, back in undo:
            back()
        faults = self.nodes.counts()
        self.nodes.use(Faults())
        found = digest(root) if codes[-1] == 0 else {}
        # A feed of what a rollback had made live leaves the changes to it and from it; what channels fetch is compared.
        compared = self.calm.keys() - {"night_s", *(["feeds"] if met["rollback"] else [])}
        differing = sorted(k for k in compared if found.get(k) != self.calm[k])
        if differing or late:
            print(f"seed {seed} differs in {differing}: {Path(settings['log']).read_text()[-4000:]}", file=sys.stderr)
        seconds = round(time.monotonic() - started, 1)
        told = {"seed": seed, "met": dict(+met), "s3": faults, "exit_codes": codes, "seconds": seconds}
        return told | {"differs": bool(differing), "too_late": late}


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
