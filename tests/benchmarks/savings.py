"""Fewer evaluations of the network against what they cost in the judge's score: halving, cached features, fewer steps,
fewer candidates.

    python -m tests.benchmarks.savings --requests 32 --out savings.json

The tiny world: held-out products with scenes in turn, K candidates each from the same seeds in every row, the winner chosen by
the ranking CLIP and scored by the judge, which never ranks. Differences are paired by request, first row subtracted, with
95 % bootstrap intervals over products. Candidates a second: those that were begun, in this process, previews and their CLIP
included. No Ray.
"""

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from adbooster.contracts.recipe import Halving, Recipe, placements
from adbooster.measure import intervals
from adbooster.models.clip import Clip
from adbooster.models.outpainter import Condition, Outpainter, Painting
from adbooster.pictures import compositing, cutouts, layout
from adbooster.pictures.images import resize
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
SIDE_PX, PAINT_PX, LAYOUTS = 512, 256, 2
SCENES = list(world.SCENES)


def ways(k: int, steps: int) -> dict[str, dict]:
    """What each row changes; `candidates` below k are those of the first row, not painted again."""
    rows: dict[str, dict] = {f"K = {k}, {steps} steps": {}}
    rows |= {f"K = {n}": {"candidates": n} for n in range(k // 2, k - 1)}
    rows |= {f"{n} steps": {"num_inference_steps": n} for n in (steps * 2 // 3, steps // 2)}
    halves = [(n, 0.5) for n in range(steps // 4, steps // 2 + 1)] + [
        (steps // 3, 0.25),
        (5 * steps // 12, 0.375),
        (steps // 2, 0.25),
    ]
    rows |= {
        f"halving at step {n}, keep {share:g}": {"halving": Halving(at=n / steps, keep=share)} for n, share in halves
    }
    rows |= {
        f"halving at step {steps // 3}, keep 0.5, preview {kind}": {"halving": Halving(at=1 / 3, preview=kind)}
        for kind in ("half", "linear")
    }
    rows |= {f"cache_every {n}": {"cache_every": n} for n in (2, 3)}
    rows |= {"guidance in the first 60 %": {"guidance_interval": (0.0, 0.6)}}
    both = {"halving": Halving(at=1 / 3)}
    rows |= {f"halving at step {steps // 3}, cache_every 2": both | {"cache_every": 2}}
    rows |= {f"halving at step {steps // 3}, guidance in the first 60 %": both | {"guidance_interval": (0.0, 0.6)}}
    return rows


@dataclass
class Request:
    """A product in a scene, its K candidates' places."""

    product: str
    cutout: cutouts.Cutout
    boxes: list[layout.Box]
    overlays: list[compositing.Overlay]
    conditions: list[Condition]
    text: str


class Row(NamedTuple):
    """One way of painting all requests; one value a request, the judge's cosine of the winner."""

    evaluations: float
    candidates_per_s: float
    judged: np.ndarray


class Panel:
    """The requests, and the two CLIPs."""

    def __init__(self, n: int, k: int, threads: int, first: Outpainter):
        self.ranker, self.judge = (Clip(MODELS / name, "cpu", threads) for name in ("rank", "judge"))
        self.k = k
        self.requests = [self._request(i, first) for i in range(n)]
        texts = [r.text for r in self.requests]
        self.ranked_by, self.judged_by = self.ranker.embed_texts(texts), self.judge.embed_texts(texts)

    def _request(self, i: int, outpainter: Outpainter) -> Request:
        product, scene = world.HELD_OUT[i % len(world.HELD_OUT)], SCENES[i * 7 % len(SCENES)]
        cutout = cutouts.cut(*world.packshot(product, SIDE_PX))
        whole, small, stand = (SIDE_PX, SIDE_PX), (PAINT_PX, PAINT_PX), placements()["square"]
        boxes = [layout.place(cutout, whole, stand, 100 * i + n) for n in range(LAYOUTS)]
        overlays = [compositing.overlay(cutout, b, whole, small) for b in boxes]
        conditions = [outpainter.condition(o.image, o.product_mask) for o in overlays]
        turns = [n % LAYOUTS for n in range(self.k)]
        places = ([some[n] for n in turns] for some in (boxes, overlays, conditions))
        return Request(product, cutout, *places, world.caption(product, scene))

    def paintings(self) -> list[Painting]:
        return [
            Painting(condition, request.text, "", 1000 * i + n, group=i)
            for i, request in enumerate(self.requests)
            for n, condition in enumerate(request.conditions)
        ]

    def scores(self, indices: list[int], pictures: list[np.ndarray]) -> list[float]:
        """The ranker's, with the product put back."""
        overlays = [self.requests[i // self.k].overlays[i % self.k] for i in indices]
        vectors = self.ranker.embed_images([o.paste(p) for o, p in zip(overlays, pictures, strict=True)])
        return [float(v @ self.ranked_by[i // self.k]) for i, v in zip(indices, vectors, strict=True)]

    def judged(self, painted: list[np.ndarray | None], candidates: int) -> np.ndarray:
        """The judge's cosine of each request's winner among its first `candidates`."""
        there = [i for i, p in enumerate(painted) if p is not None and i % self.k < candidates]
        scores = dict(zip(there, self.scores(there, [painted[i] for i in there]), strict=True))
        out = []
        for i, request in enumerate(self.requests):
            own = [j for j in there if j // self.k == i]
            best = max(own, key=lambda j: (scores[j], -j))
            scene = resize(painted[best], SIDE_PX, SIDE_PX, bicubic=True)
            picture = compositing.compose(scene, request.cutout, request.boxes[best % self.k])
            out.append(float(self.judge.embed_images([picture])[0] @ self.judged_by[i]))
        return np.array(out)


def measure(n: int, base: Recipe, threads: int, batch: int, only: list[str]) -> dict[str, Row]:
    outpainter = Outpainter(MODELS / "outpaint", base, "cpu", "bfloat16", batch)
    panel, found, k = Panel(n, base.candidates, threads, outpainter), {}, base.candidates
    plain: list[np.ndarray | None] = []
    for i, (name, changes) in enumerate(ways(k, base.num_inference_steps).items()):
        if i and only and not any(word in name for word in only):
            continue
        fewer = changes.get("candidates", k)
        if fewer < k:
            first = next(iter(found.values()))
            row = Row(first.evaluations * fewer / k, first.candidates_per_s, panel.judged(plain, fewer))
        else:
            recipe = base.model_copy(update=changes)
            outpainter = Outpainter(MODELS / "outpaint", recipe, "cpu", "bfloat16", batch)
            started, paintings = time.perf_counter(), panel.paintings()
            painted = outpainter.paint(paintings, panel.scores if recipe.halving.at else None)
            pace = len(paintings) / (time.perf_counter() - started)
            plain = plain or painted
            row = Row(outpainter.evaluations / n, pace, panel.judged(painted, k))
        found[name] = row
        print(f"{name}: {row.evaluations:.0f} evaluations, judge {row.judged.mean():.3f}", flush=True)
    return found


def table(found: dict[str, Row], products: list[str]) -> tuple[str, list[dict]]:
    """As Markdown, and as records."""
    first, records = next(iter(found.values())), []
    for name, row in found.items():
        spread = intervals.difference(row.judged, first.judged, products)
        assert spread
        records.append(
            {
                "way": name,
                "evaluations": row.evaluations,
                "share": row.evaluations / first.evaluations,
                "candidates_per_s": row.candidates_per_s,
                "judge": float(row.judged.mean()),
                "difference": spread.mean,
                "low": spread.low,
                "high": spread.high,
            }
        )
    lines = [
        "| way | evaluations a request | share | candidates/s | judge | minus the first row |",
        "|---|---|---|---|---|---|",
    ]
    for i, r in enumerate(records):
        low, high = (0.0 if r[end] is None else r[end] for end in ("low", "high"))
        lost = f"{r['difference']:+.4f} [{low:+.4f}, {high:+.4f}]" if i else ""
        cells = (
            r["way"],
            f"{r['evaluations']:.0f}",
            f"{r['share']:.0%}",
            f"{r['candidates_per_s']:.2f}",
            f"{r['judge']:.3f}",
            lost,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", nargs="*", default=[], help="rows whose name has one of these words; the first is always there"
    )
    parser.add_argument("--out", type=Path, help="the rows as JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = Recipe(
        candidates=given.candidates,
        num_inference_steps=given.steps,
        guidance_scale=3.0,
        size_px=SIDE_PX,
        paint_px=PAINT_PX,
    )
    found = measure(given.requests, base, given.threads, given.batch, given.only)
    text, records = table(found, [world.HELD_OUT[i % len(world.HELD_OUT)] for i in range(given.requests)])
    print(
        f"\n{given.requests} requests, {given.threads} threads, {platform.machine()}, torch {torch.__version__}\n\n{text}"
    )
    if given.out:
        given.out.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
