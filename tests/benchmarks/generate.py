"""Candidates a second: jobs.generate against the loop a user would write instead, and against its own engine without Ray.

    python -m tests.benchmarks.generate --quick     the three rates and their ratios
    python -m tests.benchmarks.generate --scale     seconds at 100, 1,000 and 10,000 requests; planning 1,000,000

All sides use the same weights, steps, K and CLIP, and end in stored files. The job runs on Ray with one painter and its
rate is the marginal one, between a small and a larger night, so that starting Ray and loading models does not count
(printed beside it); the engine is the same stage called in this process; the loop calls
StableDiffusionInpaintPipeline once a request with num_images_per_prompt=K. Exit code 1 below a bar.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from adbooster.contracts import schema
from adbooster.contracts.recipe import Recipe
from adbooster.generate.config import GenerateConfig
from adbooster.generate.job import generate
from adbooster.models.clip import Clip
from adbooster.painting import requests
from adbooster.painting.config import Targeting
from adbooster.painting.stages import Painter
from adbooster.pictures import compositing, cutouts, images, layout
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
LOOP_BAR, ENGINE_BAR = 1.5, 0.9
SIDE_PX = 512
RECIPE = Recipe(candidates=4, num_inference_steps=10, guidance_scale=3.0, size_px=SIDE_PX, paint_px=256)
CHEAP = Recipe(candidates=1, num_inference_steps=1, guidance_scale=1.0, size_px=128, paint_px=64, max_rounds=1)


def stock(root: Root, products: int, cohorts: int) -> None:
    """Tables of a shop: `products` rows over twelve photos, and cohorts of the tiny world's scenes."""
    stored = []
    for name in list(world.PRODUCTS)[:12]:
        photo, mask = world.packshot(name, SIDE_PX)
        stored.append((root.put(images.encode_lossless(photo), "photo"), root.put(images.encode_mask(mask), "png")))
    rows = [
        dict.fromkeys(schema.SAMPLES.names)
        | {
            "sample_id": f"s{i:07d}",
            "product_id": f"P{i:07d}",
            "role": "main",
            "title": list(world.PRODUCTS)[i % 12],
            "caption": f"a {list(world.PRODUCTS)[i % 12]} on a white background",
            "category": "",
            "photo_uri": stored[i % 12][0],
            "photo_sha256": stored[i % 12][0][11:75],
            "mask_uri": stored[i % 12][1],
        }
        for i in range(products)
    ]
    tables.merge(root, "samples", pa.Table.from_pylist(rows, schema.SAMPLES), "sample_id", None, {})
    scenes = [world.SCENES[s].name for s in world.SCENES]
    rows = [
        dict.fromkeys(schema.COHORTS.names)
        | {
            "cohort_id": f"c{i:03d}",
            "family": "",
            "query": scenes[i % len(scenes)],
            "context": "",
            "size": i,
            "version": str(i),
        }
        for i in range(cohorts)
    ]
    tables.merge(root, "cohorts", pa.Table.from_pylist(rows, schema.COHORTS), "cohort_id", None, {})


def config(root: Root, recipe: Recipe, run_id: str = "bench", threads: int = 2) -> GenerateConfig:
    return GenerateConfig(
        root_uri=root.uri,
        run_id=run_id,
        weights=str(MODELS / "outpaint"),
        rank_model=str(MODELS / "rank"),
        device="cpu",
        dtype="bfloat16",
        threads=threads,
        paint_batch=16,
        paint={"batch": 8 if recipe is RECIPE else 64},
        recipe=recipe,
        gallery=0,
    )


def planned(root: Root, recipe: Recipe) -> pa.Table:
    return requests.plan_requests(root, recipe, "bench", Prompting(), Targeting(), "")[0]


def engine(n: int, threads: int) -> float:
    """The painting stage in this process: candidates a second."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, n // 4, 4)
        rows, painter = planned(root, RECIPE), Painter(root, config(root, RECIPE, threads=threads), "bench", "bench")
        painter(rows.slice(0, 8))
        started = time.perf_counter()
        for at in range(0, rows.num_rows, 8):
            painter(rows.slice(at, 8))
        return rows.num_rows * RECIPE.candidates / (time.perf_counter() - started)


def job(n: int, recipe: Recipe, threads: int = 2) -> float:
    """Seconds of a whole night of `n` requests on a Ray that is up, models loaded and result published."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, n // 4, 4)
        started = time.perf_counter()
        report = generate(config(root, recipe, threads=threads))
        assert report.published == n, report
        return time.perf_counter() - started


def loop(n: int, threads: int) -> float:
    """What a user would write: candidates a second."""
    torch.set_num_threads(threads)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        MODELS / "outpaint", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    ranker, k, paint_px = Clip(MODELS / "rank", "cpu", threads), RECIPE.candidates, RECIPE.paint_px

    def one(row: dict, root: Root) -> None:
        photo, mask = (Image.open(root.fs.open(root.path(row[c]))) for c in ("photo_uri", "mask_uri"))
        small, mask = photo.convert("RGB").resize((paint_px, paint_px)), mask.resize((paint_px, paint_px))
        painted = pipe(
            row["prompt"],
            image=small,
            mask_image=mask.point(lambda m: 255 - m),
            negative_prompt=row["negative_prompt"],
            num_images_per_prompt=k,
            num_inference_steps=RECIPE.num_inference_steps,
            guidance_scale=RECIPE.guidance_scale,
            strength=1.0,
            height=paint_px,
            width=paint_px,
            generator=[torch.Generator().manual_seed(i) for i in range(k)],
        ).images
        cutout = cutouts.cut(np.asarray(photo.convert("RGB")), images.decode_mask(root.read(row["mask_uri"])))
        height, width = cutout.alpha.shape
        box = layout.Box((SIDE_PX - width) // 2, SIDE_PX - height, width, height)
        finished = [compositing.compose(np.asarray(p.resize((SIDE_PX, SIDE_PX))), cutout, box) for p in painted]
        scores = ranker.embed_images(finished) @ ranker.embed_texts([row["text"]])[0]
        root.put(images.encode_lossless(finished[int(scores.argmax())]), "webp")

    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, n // 4, 4)
        todo = planned(root, RECIPE).to_pylist()
        one(todo[0], root)
        started = time.perf_counter()
        for row in todo:
            one(row, root)
        return len(todo) * k / (time.perf_counter() - started)


def start_ray() -> None:
    import ray

    os.environ["RAY_AUTH_MODE"], os.environ["RAY_worker_niceness"] = "disabled", "0"
    scratch = tempfile.mkdtemp(prefix="adb-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=scratch,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False


def rates(quick: bool, threads: int) -> bool:
    few, many = (16, 48) if quick else (32, 128)
    theirs, ours = loop(few, threads), engine(many, threads)
    start_ray()
    start_s, night_s = job(few, RECIPE, threads), job(many, RECIPE, threads)
    through_ray = (many - few) * RECIPE.candidates / (night_s - start_s)
    print(f"K={RECIPE.candidates}, {RECIPE.num_inference_steps} steps, guidance {RECIPE.guidance_scale}, painted at")
    print(
        f"{RECIPE.paint_px} px, published at {SIDE_PX} px; {threads} threads, {platform.machine()}, torch {torch.__version__}"
    )
    print(f"loop    {theirs:6.2f} candidates/s ({few} requests, one pipeline call each)")
    print(f"engine  {ours:6.2f} candidates/s ({many} requests, without Ray)")
    print(f"job     {through_ray:6.2f} candidates/s ({few} to {many} requests on Ray)")
    print(
        f"a night of {few} requests takes {start_s:.1f} s, one of {many} takes {night_s:.1f} s, models and commit included"
    )
    print(f"job / engine {through_ray / ours:.2f} (bar {ENGINE_BAR})")
    print(f"ratio {through_ray / theirs:.2f}")
    return through_ray / theirs >= LOOP_BAR and through_ray / ours >= ENGINE_BAR


def plan_million() -> None:
    """Plan 50,000 products x 20 cohorts; prints seconds and the peak memory of this process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, 50_000, 20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        started = time.perf_counter()
        dry = generate(config(root, RECIPE).model_copy(update={"dry_run": True}))
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"planning {dry.requests:,} requests: {seconds:.1f} s, peak {peak:.2f} GiB (imports and tables before: {before:.2f})"
    )


def scale() -> None:
    start_ray()
    for n in (100, 1_000, 10_000):
        seconds = job(n, CHEAP)
        print(
            f"{n:>6,} requests (K=1, 1 step, 64 px, no guidance): {seconds:7.1f} s, {1000 * seconds / n:6.1f} ms a request",
            flush=True,
        )
    subprocess.run([sys.executable, "-m", "tests.benchmarks.generate", "--plan"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller nights")
    parser.add_argument("--scale", action="store_true", help="cost by number of requests instead")
    parser.add_argument("--plan", action="store_true", help="only plan 1,000,000 requests")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.plan:
        plan_million()
    elif args.scale:
        scale()
    else:
        sys.exit(not rates(args.quick, args.threads))


if __name__ == "__main__":
    main()
