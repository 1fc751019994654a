"""The usability gate on made failures, on products and scenes that it has not seen, against CLIP zero-shot and the gates.

    python -m tests.benchmarks.usability [--quick]

Pictures of the tiny world's composer, half of them good, and as many of each failure: a product that floats, that is there
twice, that is cut off, and writing in the scene. The gate is trained as a night trains it, on vectors of the CLIP that
ranks and on the figures of gates and light, of 28 products in 10 scenes; what is said is of 8 other products in 5 other
scenes. CLIP zero-shot is the same CLIP with texts for every failure, rejecting from a probability of 0.5 on, and from the
threshold that is right for 90 % of the pictures it was trained on, where there is one. The embedded CLIP has learned captions of
products in scenes alone, and no word for any failure.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adbooster.contracts.recipe import Gates
from adbooster.models.clip import Clip
from adbooster.models.saliency import SaliencyNet
from adbooster.painting.gates import NO_PEOPLE, NO_TEXT, TEXT, Inspector, clash_word
from adbooster.pictures import cutouts, lighting, scenes
from adbooster.reward.features import USABILITY_FIGURES, columns, features, figures_of
from adbooster.reward.resampling import Order, wilson
from adbooster.reward.usability import Verdicts, threshold, train_usability
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
SIDE_PX = 256
FAILURES = ("floating", "doubled", "cut_off", "text")
KINDS = ("good", *FAILURES)
WORDS = (
    "SALE",
    "50% OFF",
    "Buy now",
    "NEW",
    "Best price",
    "www.shop.com",
    "Order today",
    "LIMITED",
    "Free shipping",
    "Hello",
)
BAD_TEXTS = (
    *("a product floating in the air", "two identical products", "a product that is cut off", "a broken picture"),
    *TEXT,
)
GOOD_TEXTS = ("a product standing on the ground", "a product in a scene", *NO_TEXT, *NO_PEOPLE)
USUAL = Gates(max_expansion_share=0.3, max_copy_similarity=0.9, max_text=0.5, min_contact_share=0.5)
MEASURED = Gates(max_expansion_share=1e9, max_copy_similarity=1.0, max_people=1.0, max_text=1.0)


def made(kind: str, product: str, scene: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [S,S,3], and the alpha of the product as the system knows it, uint8 [S,S]."""
    rng = np.random.default_rng(seed)
    canvas = world.backdrop(world.SCENES[scene], SIDE_PX, rng)
    if kind == "text":
        written(canvas, rng)
    item = world.render("products", product, round(SIDE_PX * rng.uniform(0.38, 0.6)))
    item = world._turn_hue(item, int(rng.integers(256)))
    item = world._lit(item, world.SCENES[scene].colours[1], rng.uniform(0, 0.12))
    if kind == "cut_off":
        item = cut(item, rng)
    x = round((SIDE_PX - item.width) * rng.uniform(0.15, 0.85))
    foot = rng.uniform(0.35, 0.55) if kind == "floating" else rng.uniform(0.76, 0.94)
    y = max(0, round(SIDE_PX * foot) - item.height)
    if kind == "doubled":
        second = item.resize([max(1, round(n * rng.uniform(0.6, 1.0))) for n in item.size])
        far = x + item.width // 2 < SIDE_PX / 2
        at = round(SIDE_PX * rng.uniform(0.6, 0.75)) if far else round(SIDE_PX * rng.uniform(0.0, 0.1))
        base = round(SIDE_PX * rng.uniform(0.72, 0.94))
        world._shadow(canvas, at, base, second.width)
        canvas.paste(second, (at, max(0, base - second.height)), second)
    if kind != "floating":
        world._shadow(canvas, x, y + item.height, item.width)
    return world._stand(canvas, item, x, y)


def cut(item: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The product without a part of one side, along a straight line, as a mask that missed it leaves it."""
    wide, high = item.size
    share = rng.uniform(0.35, 0.55)
    side = int(rng.integers(3))
    box = [(0, 0, wide, high - high * share), (wide * share, 0, wide, high), (0, 0, wide - wide * share, high)][side]
    return item.crop(tuple(round(v) for v in box))


def written(canvas: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        font = ImageFont.load_default(size=float(rng.uniform(18, 44)))
        colour = tuple(int(v) for v in (rng.integers(0, 2, 3) * 255))
        at = rng.uniform(0.02, 0.5) * SIDE_PX, rng.uniform(0.03, 0.6) * SIDE_PX
        draw.text(at, WORDS[int(rng.integers(len(WORDS)))], colour, font)


def pictures(
    products: list[str], some_scenes: list[str], n: int, seed: int
) -> list[tuple[str, str, str, np.ndarray, np.ndarray]]:
    """(kind, product, scene, picture, alpha) of n pictures, half of them good, the kinds in turn; products and scenes by chance."""
    order, rng = [kind for failure in FAILURES for kind in (failure, "good")], np.random.default_rng(seed)
    out = []
    for i in range(n):
        kind = order[i % len(order)]
        product, scene = (some[int(rng.integers(len(some)))] for some in (products, some_scenes))
        out.append((kind, product, scene, *made(kind, product, scene, seed + i)))
    return out


class Measurer:
    """What the painter would know of pictures: vectors of the CLIP that ranks, figures of gates, light and layout."""

    def __init__(self, with_masks: bool) -> None:
        self.ranker = Clip(MODELS / "rank", "cpu")
        net = SaliencyNet(next((MODELS / "mask").glob("*.onnx")), "cpu") if with_masks else None
        self.inspector = Inspector(MEASURED, self.ranker, net, None)

    def verdicts(self, some: list) -> tuple[Verdicts, np.ndarray, np.ndarray]:
        """(verdicts, which pictures the usual gates turn down [n], CLIP's zero-shot probability of a failure [n])"""
        known = [p for *_, p, _ in some]
        alphas = [a for *_, a in some]
        bare = [scenes.scene_only(p, a) for p, a in zip(known, alphas, strict=True)]
        images, of_scenes = self.ranker.embed_images(known), self.ranker.embed_images(bare)
        rows, down = [], []
        for picture, alpha, vector in zip(known, alphas, of_scenes, strict=True):
            found = self._figures(picture, alpha, vector)
            rows.append(found[0])
            down.append(found[1])
        zero_shot = [self.ranker.probability(v, BAD_TEXTS, GOOD_TEXTS) for v in images]
        bad = np.array([kind != "good" for kind, *_ in some], float)
        groups, shown_in = (np.array([row[i] for row in some]) for i in (1, 2))
        ids = np.array([f"{i:016x}" for i in range(len(some))])
        seen = columns(rows, USABILITY_FIGURES)
        given = Verdicts(images, of_scenes, seen, bad, np.ones(len(some)), groups, shown_in, ids)
        return given, np.array(down), np.array(zero_shot)

    def _figures(self, picture: np.ndarray, alpha: np.ndarray, scene_vector: np.ndarray) -> tuple[dict, bool]:
        ys, xs = (np.nonzero(alpha.max(axis))[0] for axis in (1, 0))
        layout = {"x_px": xs[0], "y_px": ys[0], "width_px": xs[-1] - xs[0] + 1, "height_px": ys[-1] - ys[0] + 1}
        rows_columns = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
        colours = picture[rows_columns]
        light = lighting.product_light(cutouts.Cutout(colours, colours, alpha[rows_columns]))
        agreement = lighting.agreement(picture, alpha, light, picture)
        _, gates = self.inspector.inspect([picture], [alpha], [scene_vector], [""])[0]
        over = {"expansion_share": USUAL.max_expansion_share, "copy_similarity": USUAL.max_copy_similarity}
        over |= {"text": USUAL.max_text}
        turned_down = any(gates.get(name) is not None and gates[name] > most for name, most in over.items())
        return (
            figures_of(layout, (SIDE_PX, SIDE_PX), agreement.figures(), gates),
            turned_down or clash_word(USUAL, agreement) is not None,
        )


def rated(flagged: np.ndarray, kinds: np.ndarray) -> dict:
    """Precision and recall with Wilson's intervals; recall of each failure, and the share of good pictures rejected."""
    bad = kinds != "good"
    hits = float((flagged & bad).sum())
    precision = wilson(hits, float(flagged.sum())) if flagged.any() else None
    recall = wilson(hits, float(bad.sum()))
    return {
        "precision": precision and round(precision.mean, 3),
        "precision_interval": precision and [round(v or 0.0, 3) for v in (precision.low, precision.high)],
        "recall": round(recall.mean, 3),
        "recall_interval": [round(v or 0.0, 3) for v in (recall.low, recall.high)],
        "rejected_by_kind": {kind: round(float(flagged[kinds == kind].mean()), 3) for kind in KINDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="480 + 160 pictures in place of 1,000 + 400, without the mask network"
    )
    quick = parser.parse_args().quick
    n_train, n_test = (480, 160) if quick else (1000, 400)
    started = time.monotonic()
    names = sorted(world.SCENES)
    held = names[::3]
    train = pictures(world.SEEN, [s for s in names if s not in held], n_train, 0)
    test = pictures(world.HELD_OUT, held, n_test, 10**6)
    measurer = Measurer(with_masks=not quick)
    (given, _, clip_train), (new, gates, clip) = (measurer.verdicts(some) for some in (train, test))
    head, figures = train_usability(given)
    kinds = np.array([kind for kind, *_ in test])
    scores = head.score(features(new.image_vectors, new.scene_vectors, new.figures))
    flagged = scores >= figures.threshold if figures.threshold is not None else np.zeros(len(test), bool)
    at = threshold(clip_train, given.unusable > 0.5, 0.9)
    ours, zero, by_gates = rated(flagged, kinds), rated(clip >= 0.5, kinds), rated(gates, kinds)
    tuned = rated(clip >= at, kinds) if at is not None else None
    one, bad = np.zeros(len(test)), new.unusable
    print(f"Python {platform.python_version()}, scikit-learn {version('scikit-learn')}, torch {version('torch')}")
    print(
        f"trained on {len(train)} pictures of {len(world.SEEN)} products, threshold {figures.threshold}: {figures.why}"
    )
    print(f"cross-fitted while training: precision {figures.precision}, recall {figures.recall}, AUC {figures.auc:.3f}")
    for name, found in (
        ("head", ours),
        ("CLIP zero-shot, 0.5", zero),
        ("CLIP, tuned", tuned),
        ("usual gates", by_gates),
    ):
        print(f"{name:<20} {found}")
    print(
        f"weights of figures, log odds a standard deviation: { {k: round(v, 2) for k, v in figures.weights.items()} }"
    )
    result = {
        "pictures": len(test),
        "trained_on": len(train),
        "with_masks": not quick,
        **ours,
        "auc": round(Order(scores, one).auc(bad, 1 - bad), 3),
        "clip_precision": zero["precision"],
        "clip_recall": zero["recall"],
        "clip_rejected_by_kind": zero["rejected_by_kind"],
        "clip_auc": round(Order(clip, one).auc(bad, 1 - bad), 3),
        "clip_tuned": tuned,
        "gates_precision": by_gates["precision"],
        "gates_recall": by_gates["recall"],
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
