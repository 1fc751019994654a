"""Pictures a second: jobs.prepare against the plain loop over the same stage classes in one process.

    python -m tests.benchmarks.prepare --quick

Three figures: the ratio of both at 200 products (without --quick also at 2,000, nine in ten of them cut-outs with an
alpha of their own, so that little but the job's own work is left); the second night over the same products as a share
of the first; and the peak memory of the process that plans a feed of 1,000,000 rows (100,000 with --quick).
Exit code 1 below the bars.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

from adbooster.contracts import schema
from adbooster.prepare import changes, feeds
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.job import made_by, prepare
from adbooster.prepare.stages import Captioner, Fetcher, Judge, Masker
from adbooster.storage.objects import Root
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
RATIO_BAR, SECOND_NIGHT_BAR, MEMORY_BAR_GIB = 0.8, 0.05, 3.0
SIDE_PX = 256


def shop(folder: Path, products: int, cut_out_share: float) -> Path:
    """A feed with a picture each of tiny products in other places and colours."""
    keys = list(world.PRODUCTS)
    with (folder / "feed.tsv").open("w") as feed:
        feed.write("id\ttitle\timage_link\n")
        for i in range(products):
            photo, mask = world.packshot(keys[i % len(keys)], SIDE_PX, i, hue=True)
            picture = np.dstack([photo, mask]) if i % 100 < 100 * cut_out_share else photo
            Image.fromarray(picture).save(folder / f"{i}.png", compress_level=1)
            feed.write(f"P{i}\tProduct {i}\t{i}.png\n")
    return folder / "feed.tsv"


def settings(root: str, feed: Path, run_id: str) -> PrepareConfig:
    return PrepareConfig.model_validate(
        {
            "root_uri": root,
            "run_id": run_id,
            "feed_uri": str(feed),
            "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
            "caption_model": str(MODELS / "caption"),
            "device": "cpu",
            "mask": {"actors": 2, "batch": 8},
            "max_reject_share": 1,
        }
    )


def job(config: PrepareConfig) -> float:
    started = time.perf_counter()
    prepare(config)
    return time.perf_counter() - started


def loop(config: PrepareConfig, threads: int) -> float:
    """What one would write without Ray: the stages one after another over batches of the feed, then one table."""
    started = time.perf_counter()
    root, made = Root(config.root_uri), made_by(config)
    known = changes.known_samples(root, "loop", schema.SAMPLES.empty_table(), None)
    plan = changes.compare(feeds.read(config.feed_uri).pictures, known, made)
    model = {"root": root, "made": made, "runs_on": (config.device, threads)}
    stages = [
        Fetcher(root, config.source(), config.rules, made),
        Masker(model=config.mask_model, how=config.masking, **model),
        Captioner(model=config.caption_model, how=config.captions, **model),
        Judge(config.rules),
    ]
    done = []
    for rows in plan.blocks(config.caption.batch):
        for stage in stages:
            rows = stage(rows)
        done.append(rows)
    from adbooster.storage import tables

    tables.merge(root, "samples", schema.fill(pa.concat_tables(done), schema.SAMPLES), "sample_id", None, {})
    return time.perf_counter() - started


def compare(products: int, cut_out_share: float, threads: int) -> tuple[float, float]:
    """(pictures/s of the job / pictures/s of the loop, second night / first night)"""
    with tempfile.TemporaryDirectory() as folder:
        feed = shop(Path(folder), products, cut_out_share)
        first = job(settings(f"{folder}/job", feed, "night-1"))
        second = job(settings(f"{folder}/job", feed, "night-2"))
        plain = loop(settings(f"{folder}/loop", feed, "loop"), threads)
    print(f"{products} products, {cut_out_share:.0%} of them cut-outs, {SIDE_PX} px")
    print(f"  job           {products / first:8.2f} pictures/s ({first:.1f} s)")
    print(f"  plain loop    {products / plain:8.2f} pictures/s ({plain:.1f} s)")
    print(f"  ratio         {plain / first:8.2f}")
    print(f"  second night  {second:8.1f} s, {second / first:.1%} of the first", flush=True)
    return plain / first, second / first


def plan_only(rows: int) -> None:
    """In a process of its own: write a feed, plan it from nothing and against itself; print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        feed = Path(folder) / "feed.tsv"
        with feed.open("w") as f:
            f.write("id\ttitle\tdescription\timage_link\tbrand\tgoogle_product_category\n")
            for i in range(rows):
                text = f"SKU-{i}\tAurora running shoe number {i} in blue\t{'words ' * 40}\t"
                f.write(f"{text}https://cdn.shop.example/images/{i}.jpg\tAurora\tApparel & Accessories > Shoes\n")
        size_gib, before = feed.stat().st_size / 2**30, _peak_gib()
        started = time.perf_counter()
        found = feeds.read(str(feed))
        read_s = time.perf_counter() - started
        known = changes.known_samples(Root(folder), "r", schema.SAMPLES.empty_table(), None)
        counts = changes.compare(found.pictures, known, changes.MadeBy("a", "b", "c")).counts()
    assert counts == (rows, 0, 0)
    planned_s = time.perf_counter() - started
    print(json.dumps({"size": size_gib, "before": before, "peak": _peak_gib(), "read": read_s, "plan": planned_s}))


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 products and a feed of 100,000 rows only")
    parser.add_argument("--threads", type=int, default=2, help="of the models in the loop")
    parser.add_argument("--plan-only", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan_only:
        return plan_only(args.plan_only)
    rows = 100_000 if args.quick else 1_000_000
    command = [sys.executable, "-m", "tests.benchmarks.prepare", "--plan-only", str(rows)]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"{platform.machine()}, Python {platform.python_version()}, ray {ray.__version__}, torch {torch.__version__}")
    print(
        f"feed of {rows:,} rows, {plan['size']:.2f} GiB: read in {plan['read']:.1f} s, planned in {plan['plan']:.1f} s"
    )
    print(f"  peak memory   {plan['peak']:8.2f} GiB, {plan['before']:.2f} of them before", flush=True)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ratios = [compare(200, 0, args.threads)]
    if not args.quick:
        ratios.append(compare(2000, 0.9, args.threads))
    ray.shutdown()
    worst = min(r for r, _ in ratios)
    late = ratios[-1][1] if not args.quick else 0.0
    print(f"bars: ratio {RATIO_BAR}, second night {SECOND_NIGHT_BAR:.0%} (2,000 products), memory {MEMORY_BAR_GIB} GiB")
    print(f"ratio {worst:.2f}")
    sys.exit(worst < RATIO_BAR or late > SECOND_NIGHT_BAR or plan["peak"] > MEMORY_BAR_GIB)


if __name__ == "__main__":
    main()
