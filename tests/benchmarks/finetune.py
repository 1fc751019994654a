"""Fine-tuning against a plain PyTorch loop, the latent cache on against off, and what it gains on unseen products.

    python -m tests.benchmarks.finetune --quick      # images/s; exit code 1 if Ray Train costs more than 5 %
    python -m tests.benchmarks.finetune --gain       # loss and object expansion against the base, with intervals
    python -m tests.benchmarks.finetune --gpu        # SD 1.5's UNet at 512 px in bfloat16, full against LoRA

The loop is what one would write by hand: the same model class, data, batches and AdamW in one process, placing each
batch before it trains on it. Both sides leave out starting; they are run in turn, twice each, and the better run counts.
"""

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import ray
import torch

from adbooster.contracts import schema
from adbooster.finetune import examples
from adbooster.finetune.config import FinetuneConfig
from adbooster.finetune.inpainting import InpaintingModel
from adbooster.finetune.job import finetune
from adbooster.finetune.rows import arrays
from adbooster.finetune.stages import Placer
from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks import finetune_gain, finetune_gpu

MODELS = Path(world.__file__).parent / "models"
BAR = 0.95


def stock(root: Root, products: list[str], scenes_each: int, first_seed: int) -> None:
    """tables/samples with composed scenes of tiny products: true masks and captions."""
    rows, scenes = [], list(world.SCENES)
    for i, product in enumerate(p for p in products for _ in range(scenes_each)):
        scene = scenes[(i * 7) % len(scenes)]
        photo, mask = world.compose(scene, product, 256, first_seed + i)
        rows.append(
            {
                **dict.fromkeys(schema.SAMPLES.names),
                **{"sample_id": f"s{i:05d}", "product_id": product, "role": "lifestyle", "background": "scene"},
                "caption": world.caption(product, scene),
                "photo_uri": root.put(images.encode_lossless(photo), "photo"),
                "mask_uri": root.put(images.encode_mask(mask), "png"),
            }
        )
    tables.merge(root, "samples", pa.Table.from_pylist(rows, schema.SAMPLES), "sample_id", None, {})


def settings(root: Root, steps: int, **changes) -> FinetuneConfig:
    values = {
        **{"root_uri": root.uri, "run_id": "r", "base": str(MODELS / "outpaint"), "device": "cpu", "threads": 2},
        **{"size_px": 256, "aspects": (1.0,), "steps": steps, "batch": 16, "learning_rate": 1.5e-4},
        **{"ema_decay": 0.0, "panel": {"pictures": 16, "paintings": 0, "every": 0}},
    }
    return FinetuneConfig.model_validate(values | changes)


def plain_loop(config: FinetuneConfig) -> float:
    """images/s of the loop one would write by hand."""
    root = Root(config.root_uri)
    training, _ = examples.split(examples.scenic_samples(root), config.held_out_share)
    plan = examples.Plan(examples.survey(root, training, config.place), config)
    model = InpaintingModel(local_copy(config.base), "cpu", config.threads, config.precision)
    model.unet.train()
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    placer, rows, started = Placer(root, config), plan.of_worker(0, 0, config.steps), 0.0
    for step in range(config.steps):
        if step == 3:
            started = time.perf_counter()
        batch = model.encode(arrays(placer(rows.slice(step * config.batch, config.batch))))
        loss = model.loss(model.unet, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), config.max_grad_norm)
        optimizer.step()
    return (config.steps - 3) * config.batch / (time.perf_counter() - started)


def job(config: FinetuneConfig) -> float:
    """images/s of jobs.finetune with one Ray Train worker, as it reports them."""
    report = finetune(config)
    assert not report.reused
    return report.images_per_s


def compare(steps: int, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        root = Root(folder)
        stock(root, world.SEEN, 4, 3 * 10**6)
        loops, jobs, cached = [], [], []
        for i in range(rounds):
            loops.append(plain_loop(settings(root, steps, seed=i)))
            print(f"  plain loop         {loops[-1]:8.2f} images/s", flush=True)
            jobs.append(job(settings(root, steps, seed=i)))
            print(f"  Ray Train, 1 worker{jobs[-1]:8.2f} images/s", flush=True)
        started = time.perf_counter()
        cached.append(job(settings(root, steps, latents={"placements": 2, "encode": {"batch": 32}})))
        print(f"  with latent cache  {cached[-1]:8.2f} images/s ({time.perf_counter() - started:.0f} s with making it)")
        print(f"latent cache on / off {max(cached) / max(jobs):.2f}")
        return max(jobs) / max(loops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="25 steps instead of 100, in turn twice")
    parser.add_argument("--gain", action="store_true", help="what fine-tuning gains on unseen products")
    parser.add_argument("--gpu", action="store_true", help="SD 1.5's UNet on a GPU")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--pairs", type=int, default=96, help="unseen product x scene pairs of --gain")
    parser.add_argument("--work", type=Path, help="folder of --gain; a second call goes on where the first was stopped")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of --gpu; cpu takes a toy UNet")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, dense bfloat16 (H100 SXM: 989)")
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, ray {ray.__version__}, torch {torch.__version__}")
    if args.gpu:
        return finetune_gpu.main(args.device, args.steps or 20, args.peak_tflops)
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    if args.gain:
        sys.exit(finetune_gain.main(stock, settings, args.steps or 160, args.pairs, args.work))
    steps = args.steps or (25 if args.quick else 100)
    print(f"tiny UNet (11.3 M), 256 px, batch 16, {steps} steps, bfloat16 autocast, 2 threads")
    ratio = compare(steps, 2)
    ray.shutdown()
    print(f"bar: Ray Train at least {BAR} of the plain loop")
    print(f"ratio {ratio:.2f}")
    sys.exit(ratio < BAR)


if __name__ == "__main__":
    main()
