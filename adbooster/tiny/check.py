"""Are the embedded models good enough? `python -m adbooster.tiny.check` prints each figure beside its bar;
exit code 1 if one is below.

Nothing here was seen in training: pictures are composed from seeds that training never used, paintings are of the
held-out products, scenes are written for the profiles, which say things in words of their own.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from adbooster.contracts.recipe import Recipe, placements
from adbooster.models.blip import Blip
from adbooster.models.causal_lm import CausalLM
from adbooster.models.clip import Clip
from adbooster.models.outpainter import Outpainter, Painting
from adbooster.models.saliency import SaliencyNet
from adbooster.pictures import compositing, cutouts, layout
from adbooster.pictures.images import resize
from adbooster.prompts.config import LanguageModel
from adbooster.prompts.language_model import INSTRUCTIONS, SceneRequest, parse, strict_schema
from adbooster.tiny import nets, world

MODELS = Path(__file__).parent / "models"
FIRST_SEED = 2 * 10**6
SIDE_PX, PAINT_PX = 512, 256
SCENES = list(world.SCENES)


def pictures(
    products: list[str], n: int, side_px: int, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray, str, str]]:
    """n composed pictures (image, mask, product, scene), products and scenes in turn."""
    for i in range(n):
        product, scene = products[i % len(products)], SCENES[(i * 7) % len(SCENES)]
        yield *world.compose(scene, product, side_px, FIRST_SEED + first + i), product, scene


def vae_psnr(outpainter: Outpainter, n: int) -> float:
    """Mean PSNR in dB of decode(encode(picture)), half the pictures of held-out products."""
    vae, out = outpainter.vae, []
    for image, *_ in [*pictures(world.SEEN, n // 2, PAINT_PX, 0), *pictures(world.HELD_OUT, n // 2, PAINT_PX, 10**4)]:
        x_1CHW = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            y_1CHW = vae.decode(vae.encode(x_1CHW).latent_dist.mode()).sample.clamp(-1, 1)
        out.append(-10 * np.log10(((x_1CHW - y_1CHW) / 2).square().mean().item()))
    return float(np.mean(out))


def paint(outpainter: Outpainter, n: int) -> Iterator[tuple[np.ndarray, str, str]]:
    """n finished pictures of held-out products, as (picture uint8 [S,S,3], product, scene)."""
    jobs, paintings = [], []
    for i in range(n):
        product, scene = world.HELD_OUT[i % len(world.HELD_OUT)], SCENES[i % len(SCENES)]
        cutout = cutouts.cut(*world.packshot(product, SIDE_PX))
        box = layout.place(cutout, (SIDE_PX, SIDE_PX), placements()["square"], FIRST_SEED + i)
        seen = compositing.overlay(cutout, box, (SIDE_PX, SIDE_PX), (PAINT_PX, PAINT_PX))
        condition = outpainter.condition(seen.image, seen.product_mask)
        paintings.append(Painting(condition, world.caption(product, scene), "", FIRST_SEED + i))
        jobs.append((cutout, box, product, scene))
    painted = outpainter.paint(paintings)
    for background, (cutout, box, product, scene) in zip(painted, jobs, strict=True):
        yield compositing.compose(resize(background, SIDE_PX, SIDE_PX, bicubic=True), cutout, box), product, scene


def scene_named_right(judge: Clip, painted: list) -> float:
    """Share of pictures whose scene the judge names right, zero-shot over all scenes."""
    texts = {p: judge.embed_texts([world.caption(p, s) for s in SCENES]) for p in world.PRODUCTS}
    vectors = judge.embed_images([picture for picture, _, _ in painted])
    named = [SCENES[int(np.argmax(texts[p] @ v))] for v, (_, p, _) in zip(vectors, painted, strict=True)]
    return float(np.mean([a == s for a, (_, _, s) in zip(named, painted, strict=True)]))


def scene_classified_right(painted: list) -> float:
    """Share of pictures whose scene a network names right that saw composed scenes only and serves nothing else."""
    classifier = nets.load_scene_classifier(MODELS / "scenes", len(SCENES))
    small = np.stack([resize(picture, nets.SCENE_PX, nets.SCENE_PX) for picture, _, _ in painted])
    with torch.inference_mode():
        scores = classifier(torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1)
    named = [SCENES[i] for i in scores.argmax(1).tolist()]
    return float(np.mean([a == s for a, (_, _, s) in zip(named, painted, strict=True)]))


def captions_right(blip: Blip, products: list[str], n: int, product_too: bool) -> float:
    """Share of captions that name the scene, and the product where asked."""
    shown = list(pictures(products, n, PAINT_PX, 2 * 10**4))
    captions = [t.replace(" - ", "-") for t in blip.captions([image for image, *_ in shown])]
    right = [
        world.SCENES[s].name in text and (not product_too or world.PRODUCTS[p].name in text)
        for text, (_, _, p, s) in zip(captions, shown, strict=True)
    ]
    return float(np.mean(right))


def retrieval(ranker: Clip, n: int) -> float:
    """Top-1 of picture to caption among the captions of every seen product in every scene."""
    labels = [(p, s) for p in world.SEEN for s in SCENES]
    texts = ranker.embed_texts([world.caption(p, s) for p, s in labels])
    shown = list(pictures(world.SEEN, n, PAINT_PX, 3 * 10**4))
    best = (ranker.embed_images([image for image, *_ in shown]) @ texts.T).argmax(1)
    return float(np.mean([labels[b] == (p, s) for b, (_, _, p, s) in zip(best, shown, strict=True)]))


def mask_iou(net: SaliencyNet, shown: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Mean intersection over union of the mask against the true alpha, both at 50 %."""
    out = []
    for image, true in shown:
        mask, wanted = net.probabilities(image) > 0.5, true > 127
        out.append((mask & wanted).sum() / (mask | wanted).sum())
    return float(np.mean(out))


def scenes_written_right(writer: CausalLM, products_each: int) -> float:
    """Share of usable scenes that name the profile's own scene and no other; each profile with so many products."""
    llm, asked, wanted = LanguageModel(), [], []
    for i, profile in enumerate(yaml.safe_load((MODELS.parent / "profiles.yaml").read_text())):
        for product in (
            list(world.PRODUCTS.values())[(7 * i + 5 * j) % len(world.PRODUCTS)] for j in range(products_each)
        ):
            said = SceneRequest(world.article(product.name), product.category, "", profile["query"], profile["context"])
            asked.append(said)
            wanted.append(SCENES[i // 2])  # two profiles a scene, in their order
    answers = writer.answers(INSTRUCTIONS, [a.message() for a in asked], llm.max_tokens, 0.0, range(len(asked)))
    return float(np.mean([_names(text, a, llm) == {w} for text, a, w in zip(answers, asked, wanted, strict=True)]))


def _names(answer: str, asked: SceneRequest, llm: LanguageModel) -> set[str]:
    """The scenes whose names a usable answer holds; none if it is not usable."""
    try:
        written = parse(answer, asked, llm.max_words).scene
    except ValueError:
        return set()
    return {key for key, scene in world.SCENES.items() if scene.name in written}


def measure(threads: int, quick: bool) -> list[tuple[str, float, float]]:
    """(what, figure, bar) for every figure."""
    few = 8 if quick else 1
    torch.set_num_threads(threads)
    recipe = Recipe(num_inference_steps=20, guidance_scale=3.0, paint_px=PAINT_PX)
    outpainter = Outpainter(MODELS / "outpaint", recipe, "cpu", "bfloat16", 25)
    judge, rank = Clip(MODELS / "judge", "cpu", threads), Clip(MODELS / "rank", "cpu", threads)
    blip, net = Blip(MODELS / "caption", "cpu", threads), SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu", threads)
    writer = CausalLM(MODELS / "writer", "cpu", strict_schema(), threads)
    painted = list(paint(outpainter, 200 // few))
    packshots = (world.packshot(p, SIDE_PX) for p in list(world.PRODUCTS)[:: 3 if quick else 1])
    scenes = ((i, m) for i, m, _, _ in pictures(list(world.PRODUCTS), 72 // few, SIDE_PX, 4 * 10**4))
    return [
        ("VAE PSNR, dB, held-out pictures", vae_psnr(outpainter, 200 // few), 22.5),
        (f"scene of {len(painted)} paintings named right by judge", scene_named_right(judge, painted), 0.85),
        (
            f"scene of {len(painted)} paintings named right by the scene classifier",
            scene_classified_right(painted),
            0.95,
        ),
        ("caption names product and scene, seen products", captions_right(blip, world.SEEN, 280 // few, True), 0.90),
        ("caption names the scene, held-out products", captions_right(blip, world.HELD_OUT, 120 // few, False), 0.90),
        ("retrieval top-1 of rank, 420 captions", retrieval(rank, 420 // few), 0.95),
        ("retrieval top-1 of judge, 420 captions", retrieval(judge, 420 // few), 0.95),
        ("scene written for a profile is usable and the right one", scenes_written_right(writer, 8 // few), 0.90),
        ("U2-Net-p mask IoU, packshots", mask_iou(net, packshots), 0.95),
        ("U2-Net-p mask IoU, lifestyle scenes", mask_iou(net, scenes), 0.90),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="an eighth of the pictures")
    args = parser.parse_args()
    table = Table("figure", "value", "bar", "", title="The embedded models")
    figures = measure(args.threads, args.quick)
    for what, value, bar in figures:
        table.add_row(what, f"{value:.3f}", f">= {bar:.2f}", "ok" if value >= bar else "BELOW")
    Console(width=110).print(table)
    sys.exit(any(value < bar for _, value, bar in figures))


if __name__ == "__main__":
    main()
