"""What fine-tuning on product masks gains on products that neither the base nor the fine-tuning has seen.

The embedded base was trained on generic inpainting masks (boxes, strokes, all but a box; `adbooster.tiny.train`) over the
28 products that are not held out. It is fine-tuned on scenes of those, with product masks, and both are asked about the
held-out eight: the loss with the same noise and timesteps, and how much the product seems to have grown in finished
pictures of the same seeds (union form, U2-Net-p).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from adbooster.contracts.recipe import Recipe, placements
from adbooster.finetune import examples
from adbooster.finetune.config import FinetuneConfig
from adbooster.finetune.inpainting import InpaintingModel
from adbooster.finetune.job import finetune
from adbooster.finetune.rows import arrays
from adbooster.finetune.stages import Placer
from adbooster.models.outpainter import Outpainter, Painting
from adbooster.models.saliency import SaliencyNet
from adbooster.painting.gates import expansion_share
from adbooster.pictures import compositing, cutouts, layout
from adbooster.pictures.images import resize
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
PAINT_PX, SIDE_PX, FIRST_SEED, DRAWS = 256, 256, 5 * 10**6, 4


def losses(weights: str, unseen: Root, config: FinetuneConfig) -> np.ndarray:
    """float [pictures]: the loss of each unseen picture, mean over DRAWS placements, noises and timesteps."""
    config = config.model_copy(update={"empty_text_share": 0.0, "precision": "float32"})
    rows = examples.survey(unseen, examples.scenic_samples(unseen), config.place)
    plan, placer = examples.Plan(rows, config), Placer(unseen, config)
    model = InpaintingModel(local_copy(weights), "cpu", config.threads, "bfloat16")
    model.unet.eval()
    out = np.zeros((DRAWS, rows.num_rows))
    for draw in range(DRAWS):
        for at in range(0, rows.num_rows, 20):
            some = range(at, min(at + 20, rows.num_rows))
            batch = model.encode(arrays(placer(examples.planned_rows(plan, [(i, draw) for i in some]))))
            with torch.no_grad():
                out[draw, at : at + len(some)] = model.losses(model.unet, batch).numpy()
    return out.mean(0)


def expansions(weights: str, pairs: list[tuple[str, str]], threads: int) -> np.ndarray:
    """float [pairs]: by what share of its area each product seems to have grown in its finished picture."""
    recipe = Recipe(num_inference_steps=16, guidance_scale=3.0, paint_px=PAINT_PX)
    torch.set_num_threads(threads)
    outpainter = Outpainter(local_copy(weights), recipe, "cpu", "bfloat16", 20)
    net, jobs, paintings = SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu", threads), [], []
    for i, (product, scene) in enumerate(pairs):
        cutout = cutouts.cut(*world.packshot(product, SIDE_PX))
        box = layout.place(cutout, (SIDE_PX, SIDE_PX), placements()["square"], FIRST_SEED + i)
        seen = compositing.overlay(cutout, box, (SIDE_PX, SIDE_PX), (PAINT_PX, PAINT_PX))
        condition = outpainter.condition(seen.image, seen.product_mask)
        paintings.append(Painting(condition, world.caption(product, scene), "", FIRST_SEED + i))
        jobs.append((cutout, box))
    out = []
    for background, (cutout, box) in zip(outpainter.paint(paintings), jobs, strict=True):
        picture = compositing.compose(resize(background, SIDE_PX, SIDE_PX, bicubic=True), cutout, box)
        product = np.zeros((SIDE_PX, SIDE_PX), bool)
        product[box.slices] = cutout.scaled(box.width_px, box.height_px).alpha > cutouts.ON
        out.append(expansion_share(product, net.probabilities(picture) > 0.5))
    return np.array(out)


def interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of after - before over pairs, 95 %, bias-corrected and accelerated bootstrap (scipy)."""
    difference = after - before
    found = bootstrap((difference,), np.mean, n_resamples=9999, rng=np.random.default_rng(0)).confidence_interval
    return float(difference.mean()), float(found.low), float(found.high)


def by_product(values: np.ndarray, products: list[str]) -> np.ndarray:
    return np.array([values[[p == name for p in products]].mean() for name in dict.fromkeys(products)])


def report(what: str, before: np.ndarray, after: np.ndarray, products: list[str]) -> bool:
    mean, low, high = interval(before, after)
    _, by_low, by_high = interval(by_product(before, products), by_product(after, products))
    print(
        f"{what:<34} base {before.mean():.4f}  fine-tuned {after.mean():.4f}  difference {mean:+.4f} "
        f"[{low:+.4f}, {high:+.4f}] over {len(before)} pairs, [{by_low:+.4f}, {by_high:+.4f}] over "
        f"{len(set(products))} products",
        flush=True,
    )
    return high < 0


def main(stock: Callable, settings: Callable, steps: int, pairs: int, work: Path | None) -> int:
    """0 if both figures are lower than the base's with intervals that exclude zero, else 1."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = work or Path(scratch)
        seen, unseen = Root(str(folder / "seen")), Root(str(folder / "unseen"))
        each = -(-pairs // len(world.HELD_OUT))
        if not seen.exists("tables/samples"):
            stock(seen, world.SEEN, 6, 4 * 10**6)
            stock(unseen, world.HELD_OUT, each, 6 * 10**6)
        tuning = {"checkpoint_every": 20, "ema_decay": 0.99, "warmup_steps": 10, "workers": 0}
        config = settings(seen, steps, **tuning)
        done = finetune(config)
        print(
            f"{steps} steps of {config.batch} at {PAINT_PX} px on {done.samples} scenes of {len(world.SEEN)} products, "
            f"{done.images_per_s} images/s; unseen: {len(world.HELD_OUT)} products, {each} scenes each; loss: mean of {DRAWS} draws",
            flush=True,
        )
        weights, products = (str(MODELS / "outpaint"), done.weights), [p for p in world.HELD_OUT for _ in range(each)]
        lower = report("validation loss", *(losses(w, unseen, config) for w in weights), products)
        scenes = list(world.SCENES)
        asked = [(p, scenes[(i * 7) % len(scenes)]) for i, p in enumerate(products)]
        return int(
            not (
                report("expansion (share of product)", *(expansions(w, asked, 2) for w in weights), products) and lower
            )
        )
