"""Pictures a second: jobs.prepare against the plain loop over the same stage classes in one process.

    python -m tests.benchmarks.prepare --quick

The ratio of both at 200 products of 1080 px (without --quick also at 2,000 of 256 px, nine in ten of them cut-outs with an
alpha of their own, so that little but the job's own work is left); the second night over the same products as a share
of the first; the peak memory of the process that plans a feed of 1,000,000 rows (100,000 with --quick); and masking at
1080 px before and after the actor with the GPU was left with nothing but the network: on one core, and in a stage's
process whose network is a stand-in that sleeps for 10 ms a picture. Exit code 1 below the bars.
"""

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in Ray's actors; of networks `threads` says how many

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image

from adbooster.contracts import schema
from adbooster.engine.isolation import StageProcess, pickled
from adbooster.models.preprocessing import U2NET
from adbooster.models.settings import Masking, MaskNetwork
from adbooster.pictures import images
from adbooster.pictures.matting import product_mask
from adbooster.prepare import changes
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.job import prepare
from adbooster.prepare.plan import made_by
from adbooster.prepare.stages import Captioner, Fetcher, Judge, Refiner, Segmenter, Shrinker
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks.former_masking import NETWORK_S, FormerMasker, SleepingSegmenter
from tests.whole_feed import whole_feed

MODELS = Path(world.__file__).parent / "models"
RATIO_BAR, SECOND_NIGHT_BAR, MEMORY_BAR_GIB, BUSY_BAR, REFINE_BAR_S = 0.95, 0.05, 3.0, 0.9, 0.15
SIDE_PX, SMALL_PX, BATCH = 1080, 256, 16
NETWORK, CAPTION_PX = U2NET.model_copy(update={"size_px": (320, 320)}), (96, 96)


def shop(folder: Path, products: int, cut_out_share: float, side_px: int) -> Path:
    """A feed with a picture each of tiny products in other places and colours."""
    keys = list(world.PRODUCTS)
    with (folder / "feed.tsv").open("w") as feed:
        feed.write("id\ttitle\timage_link\n")
        for i in range(products):
            photo, mask = world.packshot(keys[i % len(keys)], min(side_px, 400), i, hue=True)
            photo, mask = (images.resize(a, side_px, side_px, bicubic=True) for a in (photo, mask))
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
            "refine": {"actors": 2, "batch": 8},
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
    none = schema.SAMPLES.empty_table()
    plan = changes.compare(whole_feed(config.feed_uri).pictures, changes.known_samples(none, none, none), made)
    runs_on = {"runs_on": (config.device, threads)}
    captioner = {"model": config.caption_model, "how": config.captions, "made": made, "caption_px": CAPTION_PX}
    stages = [
        Fetcher(root, config.source(), config.rules, made),
        Shrinker(root, NETWORK, CAPTION_PX, made),
        Captioner(**captioner, **runs_on),
        Segmenter(config.mask_model, config.mask_network, **runs_on),
        Refiner(root, config.masking, made),
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


def compare(products: int, cut_out_share: float, threads: int, side_px: int) -> tuple[float, float]:
    """(pictures/s of the job / pictures/s of the loop, second night / first night)"""
    with tempfile.TemporaryDirectory() as folder:
        feed = shop(Path(folder), products, cut_out_share, side_px)
        first = job(settings(f"{folder}/job", feed, "night-1"))
        second = job(settings(f"{folder}/job", feed, "night-2"))
        plain = loop(settings(f"{folder}/loop", feed, "loop"), threads)
    print(f"{products} products, {cut_out_share:.0%} of them cut-outs, {side_px} px")
    print(f"  job           {products / first:8.2f} pictures/s ({first:.1f} s)")
    print(f"  plain loop    {products / plain:8.2f} pictures/s ({plain:.1f} s)")
    print(f"  ratio         {plain / first:8.2f}")
    print(f"  second night  {second:8.1f} s, {second / first:.1%} of the first", flush=True)
    return plain / first, second / first


def masking(pictures: int) -> bool:
    """Prints what masks take before and after; whether they are within the bars."""
    made = changes.MadeBy("a", "b", "c")
    with tempfile.TemporaryDirectory() as folder:
        root, rows = Root(folder), []
        for i, key in enumerate(list(world.PRODUCTS)[:pictures]):
            photo = images.resize(world.packshot(key, 400, i)[0], SIDE_PX, SIDE_PX, bicubic=True)
            uri = root.put(images.encode(photo, "jpeg", 90)[0], "photo")
            rows.append(dict.fromkeys(schema.FETCHED.names) | {"photo_uri": uri, "photo_sha256": uri})
        fetched = pa.Table.from_pylist(rows, schema.FETCHED)
        print(
            f"masks of {pictures} pictures, {SIDE_PX} px; a sleep of {NETWORK_S * 1000:.0f} ms stands for the network"
        )
        before, _ = in_process(FormerMasker, {"root": root}, fetched, "before: all of it in one actor")
        shrunk, shrink_s = on_one_core(Shrinker(root, NETWORK, CAPTION_PX, made), fetched)
        captioned = schema.extend(shrunk, schema.CAPTIONED, caption=["a"] * pictures, caption_by=["b"] * pictures)
        sleeping = {"model": "", "network": MaskNetwork(), "runs_on": ("cpu", 1)}
        after, share = in_process(SleepingSegmenter, sleeping, captioned, "after: the network alone")
        segmented = SleepingSegmenter(**sleeping)(captioned)
        _, refine_s = on_one_core(Refiner(root, Masking(), made), segmented)
        matting_s = matted_s(root, segmented)
        one_by_one = 1 / (shrink_s + NETWORK_S + refine_s)
        print(f"  on CPUs now   {shrink_s:8.3f} s a picture and core to shrink, {refine_s:.3f} to refine and store")
        print(f"  matting alone {matting_s:8.3f} s a picture and core")
        print(f"  one core      {1 / before:8.2f} pictures/s before, {one_by_one:.2f} after")
        print(f"  one GPU       {1 / before:8.2f} pictures/s before, {1 / after:.2f} after", flush=True)
    return share >= BUSY_BAR and matting_s <= REFINE_BAR_S


def matted_s(root: Root, rows: pa.Table) -> float:
    """Seconds of a processor a picture from the network's map to the mask, decoded pictures given."""
    todo = [
        (images.decode(root.read(uri)), np.load(io.BytesIO(found)))
        for uri, found in zip(rows["photo_uri"].to_pylist(), rows["probability"].to_pylist(), strict=True)
    ]
    began = time.process_time()
    for photo, found in todo:
        product_mask(photo, found, None, Masking().solve_px)
    return (time.process_time() - began) / len(todo)


def on_one_core(stage, rows: pa.Table) -> tuple[pa.Table, float]:
    """The rows, and seconds of a processor for each, after one that is not counted."""
    stage(rows.slice(0, 1))
    began = time.process_time()
    return stage(rows), (time.process_time() - began) / rows.num_rows


def in_process(stage: type, init: dict, rows: pa.Table, name: str) -> tuple[float, float]:
    """Seconds a picture in a stage's process, as its actor sees them, and the share of them in networks."""
    process = StageProcess()
    process.build(pickled(stage, init))
    process.call(rows.slice(0, 1), 600, 64)
    began = time.perf_counter()
    for at in range(0, rows.num_rows, BATCH):
        assert isinstance(process.call(rows.slice(at, BATCH), 600, 64), pa.Table)
    spent = time.perf_counter() - began
    share = NETWORK_S * rows.num_rows / spent
    process.end()
    print(f"  {name:32} {spent / rows.num_rows:6.3f} s a picture, {share:.1%} of it in the network", flush=True)
    return spent / rows.num_rows, share


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
        found = whole_feed(str(feed))
        read_s = time.perf_counter() - started
        none = schema.SAMPLES.empty_table()
        counts = changes.compare(
            found.pictures, changes.known_samples(none, none, none), changes.MadeBy("a", "b", "c")
        ).counts()
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
    masks_fit = masking(32)
    ratios = [compare(200, 0, args.threads, SIDE_PX)]
    if not args.quick:
        ratios.append(compare(2000, 0.9, args.threads, SMALL_PX))
    ray.shutdown()
    worst = min(r for r, _ in ratios)
    late = ratios[-1][1] if not args.quick else 0.0
    print(f"bars: {BUSY_BAR:.0%} in the network, refining {REFINE_BAR_S} s a picture, ratio {RATIO_BAR},")
    print(f"      second night {SECOND_NIGHT_BAR:.0%} (2,000 products), memory {MEMORY_BAR_GIB} GiB")
    print(f"ratio {worst:.2f}")
    sys.exit(not masks_fit or worst < RATIO_BAR or late > SECOND_NIGHT_BAR or plan["peak"] > MEMORY_BAR_GIB)


if __name__ == "__main__":
    main()
