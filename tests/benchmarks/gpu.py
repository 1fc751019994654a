"""Painting and fine-tuning on one GPU, real configurations with random weights: images/s, FLOP utilisation, busy share.

    python -m tests.benchmarks.gpu --out gpu.json           an H100 in under ten minutes; the table for docs/results.md
    python -m tests.benchmarks.gpu --device cpu             the same on toy models, to see that it runs

SD 1.5 and SDXL inpainting in float16, with guidance, K candidates a request: `Outpainter` fills its batches across requests;
diffusers' own pipeline is called once a request with num_images_per_prompt=K. Encoding of the product and decoding
included, loading, compiling and a first call not. FLOPs are counted on what runs, the VAE's too; busy: kernels' time of all time.
Fine-tuning: the UNet or a LoRA, with and without encoding pictures at each step. Rows that --budget-s leaves no time for say so.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch.utils.flop_counter import FlopCounterMode

from adbooster.contracts.recipe import Recipe
from adbooster.finetune.config import Lora
from adbooster.models.outpainter import Outpainter, Painting
from adbooster.tiny import world
from tests import real_size, tiny_xl
from tests.benchmarks import finetune_gpu

TINY = Path(world.__file__).parent / "models" / "outpaint"
GUIDANCE = 7.5


class Scale(NamedTuple):
    """What a device can do in the time: sides in px, candidates a request, batches in pixels, repeats."""

    sides: tuple[int, ...]
    candidates: tuple[int, ...]
    steps: int
    images: int
    batch_pixels: int
    compiled: bool


WHOLE = Scale((512, 1024), (4, 8), 10, 32, 16 * 512 * 512, True)
TOY = Scale((64, 128), (2,), 2, 4, 4 * 64 * 64, False)


def product(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey square on white, and its mask."""
    image, mask = np.full((side, side, 3), 255, np.uint8), np.zeros((side, side), np.uint8)
    middle = slice(side // 3, 2 * side // 3)
    image[middle, middle], mask[middle, middle] = 90, 255
    return image, mask


def outpainter_of(path: Path, side: int, scale: Scale, device: str, compiled: bool) -> Outpainter:
    recipe = Recipe(num_inference_steps=scale.steps, guidance_scale=GUIDANCE, paint_px=side)
    batch = max(1, scale.batch_pixels // side**2)
    return Outpainter(path, recipe, device, "float16" if device == "cuda" else "float32", batch, compiled=compiled)


def ours(path: Path, side: int, k: int, scale: Scale, device: str, compiled: bool) -> tuple[Callable, float | None]:
    """(what paints n images, FLOP an image)"""
    painter = outpainter_of(path, side, scale, device, compiled)

    def paint(n: int) -> None:
        conditions = [painter.condition(*product(side)) for _ in range(math.ceil(n / k))]
        painter.paint([Painting(conditions[i // k], f"a scene, number {i // k}", "text", i) for i in range(n)])

    if compiled:
        return paint, None
    with FlopCounterMode(display=False) as counter:
        paint(painter.batch)
    return paint, counter.get_total_flops() / painter.batch


def stock(path: Path, side: int, k: int, scale: Scale, device: str, compiled: bool) -> tuple[Callable, float | None]:
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float16 if device == "cuda" else torch.float32).to(
        device
    )
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet = torch.compile(pipe.unet, dynamic=False)
    image, mask = product(side)

    def paint(n: int) -> None:
        for i in range(math.ceil(n / k)):
            pipe(
                f"a scene, number {i}",
                image=torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255,
                mask_image=torch.from_numpy(255 - mask).float()[None, None] / 255,
                negative_prompt="text",
                num_images_per_prompt=k,
                num_inference_steps=scale.steps,
                guidance_scale=GUIDANCE,
                strength=1.0,
                height=side,
                width=side,
                generator=[torch.Generator().manual_seed(j) for j in range(k)],
                output_type="np",
            )

    return paint, None


def busy_share(paint: Callable, n: int) -> float:
    """Time that kernels run of all time, from a trace of one call."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        paint(n)
        torch.cuda.synchronize()
    wall_us = (time.perf_counter() - started) * 1e6
    return sum(event.self_device_time_total for event in trace.key_averages()) / wall_us


def painting(weights: dict[str, Path], scale: Scale, device: str, in_time: Callable) -> Iterator[dict]:
    """One record a model, side, K and engine."""
    engines = [("diffusers", stock, False), ("outpainter", ours, False)]
    engines += [("diffusers, compiled", stock, True), ("outpainter, compiled", ours, True)] if scale.compiled else []
    work: dict[tuple, float] = {}
    plans = [(m, s, k, e) for e in engines for m in weights for s in scale.sides for k in scale.candidates]
    for model, side, k, (engine, build, compiled) in plans:
        native = side == scale.sides["XL" in model]
        if compiled and not (native and k == scale.candidates[-1]):
            continue
        record = {"what": f"{model}, {side} px, K = {k}", "engine": engine}
        if not in_time():
            yield record | {"skipped": "no time left"}
            continue
        paint, flop = build(weights[model], side, k, scale, device, compiled)
        if flop:
            work[model, side] = flop
        started = time.perf_counter()
        paint(max(k, scale.batch_pixels // side**2))
        record["first_call_s"] = time.perf_counter() - started
        n = max(k, scale.images if native else scale.images // 2)
        started = time.perf_counter()
        paint(n)
        record["images_per_s"] = n / (time.perf_counter() - started)
        if device == "cuda":
            record["busy_share"] = busy_share(paint, max(k, n // 2))
        yield record | {"key": f"{model} {side}"}
        del paint
        if device == "cuda":
            torch.cuda.empty_cache()
    yield {"work": {f"{m} {s}": flop for (m, s), flop in work.items()}}


def finetuning(base: Path, device: str, scale: Scale, in_time: Callable) -> Iterator[dict]:
    for name, lora, n in (("full", Lora(), 8), ("LoRA, rank 16", Lora(rank=16), 16)):
        for cached in (True, False):
            record = {"what": f"SD 1.5 fine-tuning, {name}", "engine": f"latent cache {'on' if cached else 'off'}"}
            if not in_time():
                yield record | {"skipped": "no time left"}
                continue
            found = finetune_gpu.measure(base, lora, device, n if device == "cuda" else 2, scale.steps, cached)
            yield record | {k: v for k, v in found.items() if v == v}
            if device == "cuda":
                torch.cuda.empty_cache()


def table(records: list[dict], peak_tflops: float) -> str:
    lines = ["| what | engine | images/s | of peak FLOP/s | busy | first call, s |", "|---|---|---|---|---|---|"]
    for r in records:
        if "skipped" in r:
            lines.append(f"| {r['what']} | {r['engine']} | {r['skipped']} | | | |")
            continue
        cells = [r["what"], r["engine"], f"{r['images_per_s']:.2f}"]
        cells.append(f"{r['tflops'] / peak_tflops:.1%}" if "tflops" in r and peak_tflops else "")
        cells += [
            f"{r['busy_share']:.0%}" if "busy_share" in r else "",
            f"{r['first_call_s']:.0f}" if "first_call_s" in r else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense float16 of the GPU; an H100 SXM has 989"
    )
    parser.add_argument("--budget-s", type=float, default=540.0)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    diffusers_logging.set_verbosity_error()  # its SDXL pipeline warns at every picture
    started, on_gpu = time.monotonic(), given.device == "cuda"
    scale = WHOLE if on_gpu else TOY
    if not on_gpu:
        torch.set_num_threads(1)
    device = (
        torch.cuda.get_device_name()
        if on_gpu
        else f"a CPU ({platform.machine()}): SHRUNK to toy models, no figure of use"
    )

    def in_time() -> bool:
        return time.monotonic() - started < given.budget_s

    with tempfile.TemporaryDirectory() as folder:
        weights = {"SD 1.5": TINY, "SDXL": Path(folder) / "xl"}
        if on_gpu:
            weights["SD 1.5"] = Path(folder) / "sd15"
            with torch.device("cuda"):  # random numbers come faster there
                real_size.write_pipeline(weights["SD 1.5"])
                real_size.write_xl(weights["SDXL"])
            torch.cuda.empty_cache()
        else:
            tiny_xl.write_pipeline(weights["SDXL"], TINY / "tokenizer")
        records = []
        for record in chain(
            finetuning(weights["SD 1.5"], given.device, scale, in_time),
            painting(weights, scale, given.device, in_time),
        ):
            records.append(record)
            print(json.dumps(record), flush=True)
    work = next(r["work"] for r in records if "work" in r)
    records = [r for r in records if "work" not in r]
    for r in records:
        if r.get("key") in work:
            r["tflops"] = r["images_per_s"] * work[r.pop("key")] / 1e12
    seconds = round(time.monotonic() - started)
    found = {"device": device, "shrunk": not on_gpu, "torch": torch.__version__, "seconds": seconds, "rows": records}
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(
        f"\n{device}; torch {torch.__version__}; {scale.steps} steps; {seconds} s\n\n{table(records, given.peak_tflops if on_gpu else 0)}"
    )


if __name__ == "__main__":
    main()
