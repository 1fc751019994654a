"""A simulated audience: what it is shown (a pool of candidates with vectors and figures) and how it clicks.

The pool is painted by the tiny world's models, or composed from its scenes. Tastes are hidden: they are over the judge's view
of the scene, brightness and the product's size, none of which a learner is given as such.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adbooster.cli.load import load
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts.recipe import Recipe
from adbooster.generate.config import GenerateConfig
from adbooster.models.clip import Clip
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.painting.requests import Planner
from adbooster.pictures import images
from adbooster.prepare.config import PrepareConfig
from adbooster.reward.features import LAYOUT, LIGHT, columns, figures_of
from adbooster.storage.buckets import WHOLE
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks import paper

MODELS = Path(world.__file__).parent / "models"
FAMILY_OF = {key: scene.family for key, scene in world.SCENES.items()}
BASE_CTR, TASTE_SD, CHANCE_SD, PAIR_SD = 0.02, 0.4, 0.1, 0.3
MOST_LIKED = 2.0  # what goes further than any picture before is liked no more for it; in sd of candidates
DAILY = 1000  # impressions of a pair, mean
ORIGINAL = -0.1  # log of the original picture's rate against the mean creative's
VIEWS = 6  # directions of the judge's space that tastes are over, besides brightness and size


@dataclass(frozen=True)
class Pool:
    """P pairs with K candidates each.

    products, cohorts, families  [P] names; texts [P,D] and vectors [P,K,D] of the rank model, unit length
    clip     [P,K] cosine with the cohort's text; own [P] that of the product's picture on white
    figures  what gates know of each candidate, [P,K] each; views [P,K,V] what tastes are over, of which
             `directions` [W,J] are those of the judge's space
    """

    products: np.ndarray
    cohorts: np.ndarray
    families: np.ndarray
    texts: np.ndarray
    vectors: np.ndarray
    clip: np.ndarray
    own: np.ndarray
    figures: dict[str, np.ndarray]
    views: np.ndarray
    directions: np.ndarray

    def save(self, path: Path) -> None:
        plain: dict[str, Any] = {k: v for k, v in vars(self).items() if k != "figures"}
        np.savez(path, allow_pickle=False, **plain | {f"figure {k}": v for k, v in self.figures.items()})

    @staticmethod
    def load(path: Path) -> "Pool":
        with np.load(path) as stored:
            figures = {k.removeprefix("figure "): stored[k] for k in stored.files if k.startswith("figure ")}
            return Pool(**{k: stored[k] for k in stored.files if not k.startswith("figure ")}, figures=figures)


def composed(work: Path, products: int, scenes: int, candidates: int, side_px: int = 128) -> Pool:
    """Candidates composed from the tiny world's scenes: most in the cohort's scene, some in another of its family."""
    at = work / f"composed-{products}-{scenes}-{candidates}.npz"
    if at.exists():
        return Pool.load(at)
    some = (world.HELD_OUT + world.SEEN)[:products]
    cohorts = list(world.SCENES)[:: max(1, len(world.SCENES) // scenes)][:scenes]
    rng, pairs, pictures, alphas = np.random.default_rng(0), [], [], []
    for p, product in enumerate(some):
        for c, scene in enumerate(cohorts):
            pairs.append((product, scene, FAMILY_OF[scene], world.SCENES[scene].words[0]))
            others = [s for s in world.SCENES if FAMILY_OF[s] == FAMILY_OF[scene]]
            for k in range(candidates):
                shown = scene if rng.random() < 0.7 else others[int(rng.integers(len(others)))]
                picture, mask = world.compose(shown, product, side_px, seed=(p * 100 + c) * 100 + k)
                pictures.append(picture)
                alphas.append(mask)
    own = {product: world.packshot(product, side_px)[0] for product in some}
    pool = _pool(pairs, pictures, alphas, own, candidates, {})
    pool.save(at)
    return pool


def painted(
    work: Path, weights: str, name: str, products: int, cohorts: int, candidates: int, like: Pool | None = None
) -> Pool:
    """Candidates that the painter paints, as a night does; painted once for each of the weights, and found again."""
    at = work / f"{name}-{products}-{cohorts}-{candidates}.npz"
    if at.exists():
        return Pool.load(at)
    root, config = stocked(work, weights, candidates)
    planner = Planner(root, config.recipe, name, config.prompts, config.targeting, config.rank_model)
    requests = planner.plan(WHOLE).requests.sort_by([("product_id", "ascending"), ("cohort_id", "ascending")])
    chosen = sorted(set(requests["product_id"].to_pylist()))[:: max(1, 32 // products)][:products]
    meant = sorted(set(requests["cohort_id"].to_pylist()))
    meant = meant[:: max(1, len(meant) // cohorts)][:cohorts]
    own_rows = [r["product_id"] in chosen and r["cohort_id"] in meant for r in requests.to_pylist()]
    requests = requests.filter(own_rows)
    placer, painter = Placer(root, config), Painter(config, shown_up_to="g")
    parts = work / f"{name}-parts"
    parts.mkdir(parents=True, exist_ok=True)
    pairs, pictures, alphas, figures = [], [], [], []
    for start in range(0, requests.num_rows, 8):
        rows, part = requests.slice(start, 8), parts / f"{start}.npz"
        placed = placer(rows)
        if not part.exists():
            told = painter(placed).to_pylist()
            shown = [sorted(r["shown"], key=lambda s: s["number"])[:candidates] for r in told]
            side = shown[0][0]["height_px"], shown[0][0]["width_px"], 3
            previews = np.array([[np.frombuffer(s["preview"], np.uint8).reshape(side) for s in r] for r in shown])
            np.savez(part, previews=previews, figures=json.dumps([[s["figures"] for s in r] for r in shown]))
        stored = np.load(part)
        for row, previews, told in zip(
            placed.to_pylist(), stored["previews"], json.loads(str(stored["figures"])), strict=True
        ):
            pairs.append((row["product_id"], row["cohort_id"], row["family"], row["text"]))
            for number, picture in enumerate(previews):
                place = row["places"][number % config.recipe.layouts]["painted"]
                alphas.append(np.frombuffer(place["alpha"], np.uint8).reshape(place["height_px"], place["width_px"]))
                pictures.append(picture)
            figures += [json.loads(f) for f in told]
        print(f"{name}: {start + rows.num_rows} of {requests.num_rows} requests", flush=True)
    own = {r["product_id"]: _photo(root, r["photo_uri"]) for r in requests.to_pylist()}
    known = columns(figures, [n for n in LIGHT if any(n in f for f in figures)])
    pool = _pool(pairs, pictures, alphas, own, candidates, known, like)
    pool.save(at)
    return pool


def stocked(work: Path, weights: str, candidates: int) -> tuple[Root, GenerateConfig]:
    """A root with the tiny catalog's samples and cohorts, and what paints them."""
    place = work / "root"
    paper.job(PrepareConfig, place, "prepare")
    paper.job(CohortsConfig, place, "cohorts")
    flags = ["--config", str(paper.TINY / "demo.yaml"), "--root-uri", str(place), "--run-id", "pool"]
    config = load(GenerateConfig, [*flags, "--weights", weights])
    recipe = Recipe.model_validate(config.recipe.model_dump() | {"candidates": candidates, "max_rounds": 1})
    changes = {"recipe": recipe, "targeting": type(config.targeting)(), "threads": 2}
    return Root(str(place)), config.model_copy(update=changes)


def _photo(root: Root, uri: str) -> np.ndarray:
    return images.decode(root.read(uri))


def _pool(
    pairs: list[tuple[str, str, str, str]],
    pictures: list[np.ndarray],
    alphas: list[np.ndarray],
    own: dict[str, np.ndarray],
    candidates: int,
    figures: dict[str, np.ndarray],
    like: Pool | None = None,
) -> Pool:
    """like  a pool whose directions tastes are over; None: those of this one"""
    torch.set_num_threads(2)
    products, cohorts, families, texts = (np.array(column) for column in zip(*pairs, strict=True))
    rank, judge = (Clip(MODELS / name, "cpu", 2) for name in ("rank", "judge"))
    shape = len(pairs), candidates, -1
    vectors = rank.embed_images(pictures).reshape(shape)
    words = rank.embed_texts(texts.tolist())
    of = dict(zip(own, rank.embed_images(list(own.values())), strict=True))
    # What tastes are over: the judge's view, by the directions in which candidates of one pair differ most.
    seen = judge.embed_images(pictures).reshape(shape)
    apart = (seen - seen.mean(1, keepdims=True)).reshape(-1, seen.shape[-1])
    directions = like.directions if like else np.linalg.svd(apart, full_matrices=False)[2][:VIEWS]
    light = np.array([_brightness(p, a) for p, a in zip(pictures, alphas, strict=True)])
    size = np.array([float((a > 127).mean()) for a in alphas])
    views = np.concatenate([seen @ directions.T, np.stack([light, size], -1).reshape(len(pairs), candidates, 2)], -1)
    return Pool(
        products,
        cohorts,
        families,
        words,
        vectors,
        clip=np.einsum("pkd,pd->pk", vectors, words),
        own=np.array([of[p] @ w for p, w in zip(products, words, strict=True)]),
        figures={name: values.reshape(len(pairs), candidates) for name, values in (_boxes(alphas) | figures).items()},
        views=views,
        directions=directions,
    )


def _boxes(alphas: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The product's box in each picture as shares of it, as a night knows it."""
    told = []
    for alpha in alphas:
        ys, xs = (np.nonzero((alpha > 127).any(axis))[0] for axis in (1, 0))
        high, wide = alpha.shape
        box = {
            "x_px": int(xs[0]),
            "y_px": int(ys[0]),
            "width_px": int(np.ptp(xs)) + 1,
            "height_px": int(np.ptp(ys)) + 1,
        }
        told.append(figures_of(box, (wide, high), {}))
    return columns(told, LAYOUT)


def _brightness(picture: np.ndarray, alpha: np.ndarray) -> float:
    return float(picture[alpha < 128].mean() / 255) if (alpha < 128).any() else 0.5


class Audience:
    """People of every cohort. `rates(night)` are the true click-through rates, which no learner sees.

    common  the seed of the tastes that all audiences share; seed: of what is this audience's own, and of its clicks
    taste   sd of log rates among the candidates of a pair by taste; 0: everybody clicks on everything alike
    """

    def __init__(self, pools: list[Pool], seed: int, taste: float = TASTE_SD, nights: int = 30, common: int = 7):
        self.pools, self.nights, self.seed, self.rng = pools, nights, seed, np.random.default_rng([seed, 1])
        first = pools[0]
        mean, spread = (
            first.views.mean(1, keepdims=True),
            (first.views - first.views.mean(1, keepdims=True)).std((0, 1)),
        )
        named = {f"{f}": i for i, f in enumerate(sorted(set(first.families)))}
        cohorts = {c: i for i, c in enumerate(sorted(set(first.cohorts)))}
        shared, own = np.random.default_rng(common), np.random.default_rng([seed, 2])
        wide = first.views.shape[-1]
        everybody = shared.normal(size=(1, wide))
        of_family, of_cohort, drift = (shared.normal(size=(n, wide)) for n in (len(named), len(cohorts), len(cohorts)))
        family, cohort = [named[f] for f in first.families], [cohorts[c] for c in first.cohorts]
        # Half of a taste is everybody's, a quarter its family's, a quarter its cohort's; of that a third is this audience's.
        mine = 0.8 * of_cohort + 0.6 * own.normal(size=of_cohort.shape)
        tastes = 0.5**0.5 * everybody + 0.5 * of_family[family] + 0.5 * mine[cohort]
        later = 0.7 * tastes + 0.7 * drift[cohort]
        # No taste is, on average over pairs, for or against what CLIP would choose.
        scaled = (first.views - mean) / spread
        clip = scaled[np.arange(len(scaled)), first.clip.argmax(1)].mean(0)
        clip /= np.linalg.norm(clip)
        pair = PAIR_SD * (own.normal(size=len(first.products)) if taste else shared.normal(size=len(first.products)))
        self.originals = BASE_CTR * np.exp(pair + (ORIGINAL if taste else 0.0))
        self.true = []
        for w in (tastes, later):
            w = w - (w @ clip)[:, None] * clip
            w /= np.linalg.norm(w, axis=1, keepdims=True)
            of_pools, usual = [], 0.0
            for i, pool in enumerate(pools):
                chance = np.random.default_rng([seed, 3, i]).normal(size=pool.clip.shape)
                liked = np.einsum("pkv,pv->pk", (pool.views - mean) / spread, w)
                liked = np.tanh(liked / MOST_LIKED)
                usual = usual or liked.std()  # of the first pool
                liked /= usual
                of_pools.append(
                    BASE_CTR * np.exp(pair[:, None] + taste * liked + (CHANCE_SD * chance if taste else 0.0))
                )
            self.true.append(of_pools)
        volume = np.exp(0.7 * own.normal(size=len(pair)))  # some pairs are shown ten times as often as others
        self.daily = DAILY * volume / volume.mean()

    def rates(self, night: int) -> list[np.ndarray]:
        """[P,K] of each pool; tastes change at half-time."""
        return self.true[int(night >= self.nights // 2)]

    def click(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(impressions, clicks) of a day, one entry a pair, of what has these rates."""
        impressions = self.rng.poisson(self.daily)
        return impressions, self.rng.binomial(impressions, np.minimum(rates, 1))
