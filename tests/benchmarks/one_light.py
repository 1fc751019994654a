"""What drawing the scene toward the product changes, on the same paintings: a sheet of pairs, figures, milliseconds.

    python -m tests.benchmarks.one_light --work one-light

Products of the tiny world are painted once (one candidate, few steps) and finished under the former settings and under
the new ones. `--work` keeps the paintings, and gets `pairs.png` (before, after; two products a row) and with `--blind` a
sheet for people whose key lies beside it: `adbooster blind score` reads it.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from adbooster.contracts.recipe import Gates, Harmonise, Recipe, placements
from adbooster.painting import finish
from adbooster.painting.gates import clash_word
from adbooster.pictures import compositing, cutouts, images, layout, lighting, proof
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
SIDE_PX, THUMB_PX, FULL_PX = 512, 360, 1080
BEFORE = Recipe(shadow="contact")
AFTER = Recipe(shadow="grounded", harmonise=Harmonise(exposure_stops=0.3, white_balance=0.1, grain=True))
GATES = Gates(min_contact_share=0.5, max_light_opposition=0.5)
Subject = tuple[str, str, cutouts.Cutout, layout.Box]


def subjects(n: int) -> list[Subject]:
    """Product, scene, cut-out and place of n pictures; products that no embedded model has seen come first."""
    products, scenes = world.HELD_OUT + world.SEEN, list(world.SCENES)
    out = []
    for i in range(n):
        product = products[i % len(products)]
        cutout = cutouts.cut(*world.packshot(product, SIDE_PX))
        box = layout.place(cutout, (SIDE_PX, SIDE_PX), placements()["square"], i)
        out.append((product, scenes[(i * 7) % len(scenes)], cutout, box))
    return out


def paintings(work: Path, some: list[Subject], steps: int, paint_px: int) -> np.ndarray:
    """uint8 [n,p,p,3], painted once and found again."""
    kept = work / f"paintings-{len(some)}-{steps}-{paint_px}.npy"
    if kept.exists():
        return np.load(kept)
    from adbooster.models.outpainter import Outpainter, Painting

    recipe = Recipe(num_inference_steps=steps, guidance_scale=3.0, paint_px=paint_px)
    outpainter = Outpainter(MODELS / "outpaint", recipe, "cpu", "bfloat16", 12)
    asked = []
    for i, (product, scene, cutout, box) in enumerate(some):
        seen = compositing.overlay(cutout, box, (SIDE_PX, SIDE_PX), (paint_px, paint_px))
        condition = outpainter.condition(seen.image, seen.product_mask)
        asked.append(Painting(condition, world.caption(product, scene), "", i))
    painted = np.stack(outpainter.paint(asked))
    np.save(kept, painted)
    return painted


def measure(painted: np.ndarray, cutout: cutouts.Cutout, box: layout.Box) -> tuple[np.ndarray, np.ndarray, dict]:
    """(before, after, figures) of one picture."""
    size = (SIDE_PX, SIDE_PX)
    before, after = (finish.finish(painted, cutout, box, size, recipe) for recipe in (BEFORE, AFTER))
    alpha, light = compositing.placed_alpha(cutout, box, size), lighting.product_light(cutout)
    agreed = [lighting.agreement(painted, alpha, light, picture) for picture in (before, after)]
    outside = alpha == 0
    return (
        before,
        after,
        {
            "colour_distance_before": agreed[0].colour_distance,
            "colour_distance_after": agreed[1].colour_distance,
            "changed_outside": float((before != after).any(axis=-1)[outside].mean()),
            "visibly_changed": float((np.abs(before.astype(int) - after).max(axis=-1) > 5)[outside].mean()),
            "product_exact": float(all(not proof.product_difference(p, cutout, box) for p in (before, after))),
            "contact_share": agreed[0].contact_share,
            "ground_line": agreed[0].ground_line,
            "rejected": float(clash_word(GATES, agreed[0]) is not None),
            "lowered_rejected": _lowered_rejected(painted, cutout, box, agreed[0].ground_line),
            "light_opposition": agreed[0].light_opposition,
            "clash": agreed[0].clash,
        },
    )


def lowered(painted: np.ndarray, ground_line: float, base: float) -> np.ndarray:
    """The painting moved down until its ground begins below the product's base: a product that floats."""
    by = round((base + 0.08 - ground_line) * len(painted))
    return np.concatenate([np.repeat(painted[:1], by, 0), painted[: len(painted) - by]]) if by > 0 else painted


def _lowered_rejected(
    painted: np.ndarray, cutout: cutouts.Cutout, box: layout.Box, ground_line: float | None
) -> float | None:
    if ground_line is None:
        return None
    return float(floats(lowered(painted, ground_line, (box.y_px + box.height_px) / SIDE_PX), cutout, box))


def floats(painted: np.ndarray, cutout: cutouts.Cutout, box: layout.Box) -> bool:
    """Whether the gate that is recommended says so."""
    alpha = compositing.placed_alpha(cutout, box, (SIDE_PX, SIDE_PX))
    agreed = lighting.agreement(painted, alpha, lighting.Light(90, 0), np.repeat(alpha[..., None], 3, 2))
    return clash_word(GATES, agreed) == "floating"


def milliseconds(painted: np.ndarray) -> dict:
    """CPU time of finishing one picture at FULL_PX, and of all figures of it: the least of 9."""
    photo, mask = (images.resize(a, 1600, 1600, bicubic=True) for a in world.packshot("teapot", SIDE_PX))
    cutout, size = cutouts.cut(photo, mask), (FULL_PX, FULL_PX)
    box = layout.place(cutout, size, placements()["square"], 1)
    alpha, light = compositing.placed_alpha(cutout, box, size), lighting.product_light(cutout)
    picture = finish.finish(painted, cutout, box, size, AFTER)
    jobs: dict[str, Callable] = {
        "finish_before_ms": lambda: finish.finish(painted, cutout, box, size, BEFORE),
        "finish_after_ms": lambda: finish.finish(painted, cutout, box, size, AFTER),
        "figures_ms": lambda: lighting.agreement(painted, alpha, light, picture),
    }
    return {name: round(min(_cpu_ms(job) for _ in range(9)), 1) for name, job in jobs.items()}


def _cpu_ms(job: Callable) -> float:
    started = time.process_time()
    job()
    return 1000 * (time.process_time() - started)


def sheet(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Before and after side by side, two products a row."""
    page = Image.new("RGB", (4 * THUMB_PX, THUMB_PX * -(-len(pairs) // 2)), "white")
    for i, pair in enumerate(pairs):
        for j, picture in enumerate(pair):
            at = ((i % 2 * 2 + j) * THUMB_PX, i // 2 * THUMB_PX)
            page.paste(Image.fromarray(images.resize(picture, THUMB_PX, THUMB_PX)), at)
    return page


def blind(work: Path, some: list[Subject], pairs: list[tuple[np.ndarray, np.ndarray]]) -> int:
    """A sheet as `adbooster blind` writes it: which is preferred, without saying which is which."""
    from adbooster.evaluate import blind_sheet
    from adbooster.evaluate.config import Sheet
    from adbooster.storage.objects import Root

    root, rows = Root(str(work)), []
    for i, ((product, scene, *_), pair) in enumerate(zip(some, pairs, strict=True)):
        before, after = (root.put(images.encode_lossless(picture), "webp") for picture in pair)
        facts = {"creative_id": f"{i:03d}", "product_id": product, "cohort_id": scene}
        facts |= {"family": world.SCENES[scene].family, "text": world.caption(product, scene)}
        rows.append(facts | {"uri": after, "neutral_uris": [before], "contextual_uris": []})
    return blind_sheet.write(root, "blind", rows, Sheet(pairs=len(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--paint-px", type=int, default=256)
    parser.add_argument("--blind", action="store_true", help="write a sheet for people too")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    some = subjects(given.pictures)
    painted = paintings(given.work, some, given.steps, given.paint_px)
    pairs, rows = [], []
    for one, (product, scene, cutout, box) in zip(painted, some, strict=True):
        before, after, figures = measure(one, cutout, box)
        pairs.append((before, after))
        rows.append(figures)
        shown = {k: v if v is None else round(v, 3) for k, v in figures.items()}
        print(f"{product:<18} {scene:<11}", *(f"{k} {v}" for k, v in shown.items()))
    sheet(pairs).save(given.work / "pairs.png")
    known = {name: [v for r in rows if (v := r[name]) is not None] for name in rows[0]}
    means = {name: round(float(np.mean(values)), 4) for name, values in known.items() if values}
    if given.blind:
        means["blind_pairs"] = blind(given.work, some, pairs)
    print(json.dumps({"pictures": len(rows)} | means | milliseconds(painted[0])))


if __name__ == "__main__":
    main()
