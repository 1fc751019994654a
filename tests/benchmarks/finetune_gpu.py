"""SD 1.5's inpainting UNet in its real configuration with random weights: images/s, model FLOP utilisation, peak memory.

A step is timed on latents that lie on the device, as training from the latent cache has them, or with encoding what it learns
from, as training without that cache does.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from adbooster.finetune.config import Lora, TrainingConfig
from adbooster.finetune.inpainting import Encoded, InpaintingModel
from adbooster.finetune.trainer import Trainer
from adbooster.tiny import world
from tests.real_size import write_pipeline

TINY = Path(world.__file__).parent / "models" / "outpaint"
BATCHES = {"full": 8, "LoRA, rank 16": 16}


def latents(unet: UNet2DConditionModel, n: int, tokens: int, device: str) -> Encoded:
    side = unet.config.sample_size
    return Encoded(
        x=torch.randn(n, 4, side, side, device=device),
        masked=torch.randn(n, 4, side, side, device=device),
        mask=torch.ones(n, 1, side, side, device=device),
        states=torch.randn(n, tokens, unet.config.cross_attention_dim, device=device),
        pooled=None,
        weight=torch.ones(n, device=device),
        noise_seed=list(range(n)),
        prior=torch.zeros(n, device=device),
    )


def pictures(side_px: int, n: int) -> dict:
    """Noise in the place of photos, as `rows.arrays` gives examples."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 255, (n, side_px, side_px, 3), np.uint8),
        "mask": np.zeros((n, side_px, side_px), np.uint8),
        "caption": [f"a product, number {i}" for i in range(n)],
        "weight": np.ones(n, np.float32),
        "prior": np.zeros(n, np.float32),
        "noise_seed": list(range(n)),
    }


def flops(learner: Trainer, batch: Encoded) -> int:
    """Of a forward and a backward pass, counted on what runs, without recomputed activations."""
    counter = FlopCounterMode(display=False)
    with counter:
        learner.model.loss(learner.unet, batch).backward()
    learner.optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def measure(base: Path, lora: Lora, device: str, n: int, steps: int, cached: bool = True) -> dict[str, float]:
    config = TrainingConfig(
        root_uri="unused", base=str(base), device=device, lora=lora, batch=n, steps=steps, precision="bfloat16"
    )
    model = InpaintingModel(base, device, torch.get_num_threads(), config.precision, lora)
    for part in model.frozen() if cached else ():
        part.to("cpu")
    learner = Trainer(model, config)
    tokens = model.pipe.tokenizer.model_max_length
    work = flops(learner, latents(model.unet, 1, tokens, device))
    batch = latents(model.unet, n, tokens, device)
    seen = pictures(model.unet.config.sample_size * model.pipe.vae_scale_factor, n)
    for _ in range(3):
        learner.step([batch if cached else model.encode(seen)])
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        learner.step([batch if cached else model.encode(seen)])
    wait()
    pace = n * steps / (time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    return {"images_per_s": pace, "tflop_an_image": work / 1e12, "tflops": pace * work / 1e12, "peak_gib": peak}


def main(device: str, steps: int, peak_tflops: float) -> None:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy UNet"
    with tempfile.TemporaryDirectory() as folder:
        base = TINY
        if device == "cuda":
            base = Path(folder) / "sd15"
            write_pipeline(base)
        found = {}
        for what, n in BATCHES.items():
            lora = Lora(rank=16) if "LoRA" in what else Lora()
            found[what] = m = measure(base, lora, device, n if device == "cuda" else 2, steps)
            print(
                f"{name}: {what:<14} batch {n:>3} {m['images_per_s']:7.1f} images/s, "
                f"{m['tflop_an_image']:.2f} TFLOP an image, utilisation {m['tflops'] / peak_tflops:.1%} of "
                f"{peak_tflops:g} TFLOP/s, peak {m['peak_gib']:.1f} GiB",
                flush=True,
            )
    print(json.dumps(found))
    full, lora_pace = (m["images_per_s"] for m in found.values())
    print(f"ratio {lora_pace / full:.2f}")
