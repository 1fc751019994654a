"""Candidates a second: jobs.generate against the loop a user would write instead, and against its own engine without Ray.

    python -m tests.benchmarks.generate --quick     the three rates and their ratios
    python -m tests.benchmarks.generate --scale     seconds at 100, 1,000 and 10,000 requests; planning 1,000,000
    python -m tests.benchmarks.generate --busy      the share of its time that the painter is in networks
    python -m tests.benchmarks.generate --cpu       processor seconds and bytes a request of placing and finishing

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
from adbooster.contracts.settings import Pool
from adbooster.engine import stage_times
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, through
from adbooster.engine.staging import stage_parts
from adbooster.generate import rounds
from adbooster.generate.config import GenerateConfig
from adbooster.generate.job import generate
from adbooster.models.clip import Clip
from adbooster.painting import requests
from adbooster.painting.config import Targeting
from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.pictures import compositing, cutouts, images, layout
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from adbooster.storage.buckets import WHOLE
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks import stand_ins

MODELS = Path(world.__file__).parent / "models"
LOOP_BAR, ENGINE_BAR, BUSY_BAR, OUTSIDE_BAR_MS = 2.5, 0.9, 0.9, 15
SIDE_PX = 512
RECIPE = Recipe(candidates=4, num_inference_steps=10, guidance_scale=3.0, size_px=SIDE_PX, paint_px=256)
PRODUCTION = Recipe(
    candidates=4,
    size_px=1080,
    paint_px=512,
    shadow="grounded",
    gates={"max_expansion_share": 0.5, "max_copy_similarity": 0.9, "min_background_distance": None},
)
CHEAP = Recipe(candidates=1, num_inference_steps=1, guidance_scale=1.0, size_px=128, paint_px=64, max_rounds=1)


def stock(root: Root, products: int, cohorts: int, side_px: int = SIDE_PX) -> None:
    """Tables of a shop: `products` rows over twelve photos, and cohorts of the tiny world's scenes."""
    stored = []
    for name in list(world.PRODUCTS)[:12]:
        photo, mask = world.packshot(name, side_px)
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
    return requests.Planner(root, recipe, "bench", Prompting(), Targeting(), "").plan(WHOLE).requests


def engine(n: int, threads: int) -> float:
    """The painting stage in this process: candidates a second."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, n // 4, 4)
        rows, settings = planned(root, RECIPE), config(root, RECIPE, threads=threads)
        stages = Placer(root, settings), Painter(settings), Finisher(root, settings, "bench", "bench")

        def run(some: pa.Table) -> None:
            for stage in stages:
                some = stage(some)

        run(rows.slice(0, 8))
        started = time.perf_counter()
        for at in range(0, rows.num_rows, 8):
            run(rows.slice(at, 8))
        return rows.num_rows * RECIPE.candidates / (time.perf_counter() - started)


def job(n: int, recipe: Recipe, threads: int = 2) -> tuple[float, float]:
    """Seconds of a whole night of `n` requests on a Ray that is up, models loaded and result published; and in networks."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, n // 4, 4)
        started = time.perf_counter()
        report = generate(config(root, recipe, threads=threads))
        assert report.published == n, report
        seconds = time.perf_counter() - started
        return seconds, stage_times.read(root, "bench")["generate"]["Painter"]["network_s"]


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
    start_s, night_s = job(few, RECIPE, threads)[0], job(many, RECIPE, threads)[0]
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


def busy(quick: bool) -> bool:
    """Prints the share of the painter's time in networks and requests a second, before and after the stages were split."""
    cohorts = 4 if quick else 8
    start_ray()
    print(f"12 products x {cohorts} cohorts, K=4, published at {PRODUCTION.size_px} px without loss, gates on.")
    print(f"STAND-INS FOR TIME ONLY: {stand_ins.REQUEST_S} s a request for the UNet, {stand_ins.U2NET_S} s for U2-Net;")
    print(f"pictures are made. All else is real. {os.cpu_count()} cores, {platform.machine()}", flush=True)
    share, rate = one_actor(cohorts)
    print(f"in one actor, as before:          busy {share:6.1%}  {rate:5.2f} requests/s", flush=True)
    found = {}
    for finishers in (1, 2, 4):
        found[finishers], rate = split(cohorts, finishers)
        word = "actor" if finishers == 1 else "actors"
        print(
            f"split, {finishers} {word} that finish:".ljust(34)
            + f"busy {found[finishers]:6.1%}  {rate:5.2f} requests/s",
            flush=True,
        )
    best = max(found.values())
    print(f"busy {best:.3f}")
    return best >= BUSY_BAR


def split(cohorts: int, finishers: int) -> tuple[float, float]:
    """(share of the painter's time in networks, requests a second) of a job with so many finishing actors."""
    with tempfile.TemporaryDirectory() as folder:
        root, real = Root(folder), rounds.Painter
        stock(root, 12, cohorts, PRODUCTION.size_px)
        settings = production(root, finishers)
        rounds.Painter = stand_ins.SleepingPainter
        try:
            report = generate(settings)
        finally:
            rounds.Painter = real
        assert report.published == 12 * cohorts, report
        stages = stage_times.read(root, "bench")["generate"]
        painter, last = stages["SleepingPainter"], stages["Finisher"]
        return painter["network_share"], 12 * cohorts / (last["ended_s"] - painter["began_s"])


def processor(cohorts: int = 4) -> None:
    """Prints what placing and finishing a request costs of a processor, and the bytes of its file; the UNet is a sleep."""
    for image_format in ("webp_lossless", "jpeg"):
        recipe = PRODUCTION.model_copy(update={"image_format": image_format})
        with tempfile.TemporaryDirectory() as folder:
            root = Root(folder)
            stock(root, 12, cohorts, recipe.size_px)
            settings = production(root, 1).model_copy(update={"recipe": recipe})
            rows, place = planned(root, recipe), Placer(root, settings)
            paint, finish = stand_ins.SleepingPainter(settings), Finisher(root, settings, "bench", "bench")
            place_s, placed = _processor_s(place, rows)
            finish_s, done = _processor_s(finish, paint(placed))
            size, n = float(np.mean(done["size_bytes"].to_numpy())), rows.num_rows
        print(
            f"{image_format:<14} {n} requests: place {place_s / n:.3f} s, finish {finish_s / n:.3f} s of a core a request, "
            f"{size / 1e3:.0f} kB a file of {recipe.size_px} px",
            flush=True,
        )


def _processor_s(stage: Placer | Finisher, rows: pa.Table) -> tuple[float, pa.Table]:
    """Seconds of all this process's threads, and the stage's rows; eight requests a call."""
    began = time.process_time()
    done = pa.concat_tables([stage(rows.slice(at, 8)) for at in range(0, rows.num_rows, 8)])
    return time.process_time() - began, done


def one_actor(cohorts: int) -> tuple[float, float]:
    """As `split`, of one actor that does everything in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, 12, cohorts, PRODUCTION.size_px)
        settings, times = production(root, 1), stage_times.start()
        init = {"root": root, "config": settings, "recipe_id": "bench", "weights_revision": "bench"}
        failures = Failures(root, "bench", "failed_paint")
        rows = planned(root, PRODUCTION)
        ds = through(dataset(rows, 8), stand_ins.OneActor, settings.paint, schema.STAGED, failures, times=times, **init)
        stage_parts(ds, root, "runs/bench/staged/x")
        found = stage_times.write(root, "bench", "before", times, [])["OneActor"]
        return found["network_share"], rows.num_rows / (found["ended_s"] - found["began_s"])


def production(root: Root, finishers: int) -> GenerateConfig:
    return config(root, PRODUCTION, threads=1).model_copy(
        update={
            "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
            "paint": Pool(batch=16, cpus=0.5),
            "place": Pool(cpus=0.5),
            "finish": Pool(actors=finishers, batch=2, cpus=0.5, niceness=5),
        }
    )


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


def scale() -> bool:
    """Seconds by number of requests; False if 10,000 cost more than the bar outside networks."""
    start_ray()
    outside_ms = 0.0
    for n in (100, 1_000, 10_000):
        seconds, network_s = job(n, CHEAP)
        outside_ms = 1000 * (seconds - network_s) / n
        print(
            f"{n:>6,} requests (K=1, 1 step, 64 px, no guidance): {seconds:7.1f} s, {1000 * seconds / n:6.1f} ms a request, "
            f"{outside_ms:6.1f} ms of them outside networks",
            flush=True,
        )
    subprocess.run([sys.executable, "-m", "tests.benchmarks.generate", "--plan"], check=True)
    return outside_ms <= OUTSIDE_BAR_MS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller nights")
    parser.add_argument("--scale", action="store_true", help="cost by number of requests instead")
    parser.add_argument("--busy", action="store_true", help="the painter's share of time in networks instead")
    parser.add_argument(
        "--cpu", action="store_true", help="processor seconds and bytes of placing and finishing instead"
    )
    parser.add_argument("--plan", action="store_true", help="only plan 1,000,000 requests")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.plan:
        plan_million()
    elif args.scale:
        sys.exit(not scale())
    elif args.cpu:
        processor()
    elif args.busy:
        sys.exit(not busy(args.quick))
    else:
        sys.exit(not rates(args.quick, args.threads))


if __name__ == "__main__":
    main()
