"""Candidates a second: the engine of jobs.generate against the loop a user would write instead.

    python -m tests.benchmarks.generate --quick

Both sides paint the same requests with the same weights, steps and K, and score with the same CLIP: ours in full
batches through one Painter, theirs one StableDiffusionInpaintPipeline call a request with num_images_per_prompt=K.
Exit code 1 below the bar.
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from adbooster import generate, images, layout, schema
from adbooster.objects import Root
from adbooster.rank import Ranker
from adbooster.recipe import Recipe
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
BAR = 1.5
K, STEPS, GUIDANCE, SIDE_PX, PAINT_PX = 4, 10, 3.0, 512, 128


def requests(root: Root, n: int) -> pa.Table:
    rows = []
    for i in range(n):
        product, scene = list(world.PRODUCTS)[i % 12], list(world.SCENES)[i % len(world.SCENES)]
        photo, mask = world.packshot(product, SIDE_PX)
        photo_uri = root.put(images.encode_lossless(photo), "photo")
        rows.append(
            dict.fromkeys(schema.REQUESTS.names)
            | {
                "request_id": f"{i:064d}",
                "product_id": product,
                "cohort_id": scene,
                "text": world.SCENES[scene].name,
                "prompt": world.caption(product, scene),
                "negative_prompt": "",
                "photo_uri": photo_uri,
                "mask_uri": root.put(images.encode_mask(mask), "png"),
                "own_photo_uris": [photo_uri],
            }
        )
    return pa.Table.from_pylist(rows, schema.REQUESTS)


def ours(root: Root, rows: pa.Table, threads: int):
    config = generate.GenerateConfig(
        root_uri=root.uri,
        weights=str(MODELS / "outpaint"),
        rank_model=str(MODELS / "rank"),
        device="cpu",
        dtype="bfloat16",
        threads=threads,
        paint_batch=16,
        recipe=Recipe(
            candidates=K, num_inference_steps=STEPS, guidance_scale=GUIDANCE, size_px=SIDE_PX, paint_px=PAINT_PX
        ),
    )
    painter = generate.Painter(root, config, "bench", "bench")
    painter(rows.slice(0, 4))
    started = time.perf_counter()
    for at in range(0, rows.num_rows, 8):
        painter(rows.slice(at, 8))
    return rows.num_rows * K / (time.perf_counter() - started)


def theirs(root: Root, rows: pa.Table, threads: int):
    torch.set_num_threads(threads)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        MODELS / "outpaint", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    ranker = Ranker(MODELS / "rank", "cpu", threads)

    def one(row: dict) -> None:
        photo, mask = (Image.open(root.fs.open(root.path(row[k]))) for k in ("photo_uri", "mask_uri"))
        small, mask = photo.convert("RGB").resize((PAINT_PX, PAINT_PX)), mask.resize((PAINT_PX, PAINT_PX))
        painted = pipe(
            row["prompt"],
            image=small,
            mask_image=mask.point(lambda m: 255 - m),
            num_images_per_prompt=K,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            strength=1.0,
            height=PAINT_PX,
            width=PAINT_PX,
            generator=[torch.Generator().manual_seed(k) for k in range(K)],
        ).images
        cutout = layout.cut(np.asarray(photo.convert("RGB")), images.decode_mask(root.read(row["mask_uri"])))
        height, width = cutout.alpha.shape
        box = layout.Box((SIDE_PX - width) // 2, SIDE_PX - height, width, height)
        finished = [layout.compose(np.asarray(p.resize((SIDE_PX, SIDE_PX))), cutout, box) for p in painted]
        scores = ranker.embed_images(finished) @ ranker.embed_texts([row["text"]])[0]
        root.put(images.encode_lossless(finished[int(scores.argmax())]), "webp")

    todo = rows.to_pylist()
    one(todo[0])
    started = time.perf_counter()
    for row in todo:
        one(row)
    return len(todo) * K / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="16 requests instead of 64")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    n = 16 if args.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        rows = requests(root, n)
        a, b = ours(root, rows, args.threads), theirs(root, rows, args.threads)
    print(
        f"{n} requests, K={K}, {STEPS} steps, guidance {GUIDANCE}, painted at {PAINT_PX} px, published at {SIDE_PX} px"
    )
    print(f"{args.threads} threads, {platform.machine()}, torch {torch.__version__}")
    print(f"ours    {a:.2f} candidates/s")
    print(f"theirs  {b:.2f} candidates/s")
    print(f"ratio {a / b:.2f}")
    sys.exit(a / b < BAR)


if __name__ == "__main__":
    main()
