"""Creatives, an audience and its clicks, made from a seed: what is learned can be compared with what is true."""

import numpy as np

from adbooster.contracts.evaluation import Interval
from adbooster.reward.config import Comparison, RewardFigures, UsabilityFigures
from adbooster.reward.features import REWARD_FIGURES, USABILITY_FIGURES, VECTORS
from adbooster.reward.heads import Card, Head, Scale
from adbooster.reward.heads import names as feature_names
from adbooster.reward.regression import Calibration, Regression
from adbooster.reward.training import Examples

FAMILIES = np.array(["seasons", "events", "sports"])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def audience(taste: float = 0.8, products: int = 30, seed: int = 0, impressions: int = 900, logged: bool = True):
    """(examples, true click rates [n]): 6 cohorts, 3 variants a place; `taste` 0: people click by CLIP's score alone."""
    rng = np.random.default_rng(seed)
    cohorts, variants, side = 6, 3, 16
    texts, liked = unit(rng.normal(size=(cohorts, side))), unit(rng.normal(size=side))
    product, cohort, variant = (
        a.ravel() for a in np.meshgrid(*map(np.arange, (products, cohorts, variants)), indexing="ij")
    )
    n = len(product)
    images = unit(0.4 * rng.normal(size=(products, side))[product] + 2 * texts[cohort] + rng.normal(size=(n, side)))
    clip = (images * texts[cohort]).sum(axis=1)
    fit, wanted = ((v - v.mean()) / v.std() for v in (clip, images @ liked))
    rates = 1 / (1 + np.exp(3 - 0.2 * fit - taste * wanted))
    share = np.full(n, 1 / variants)
    if logged:
        share = 0.1 / variants + 0.9 * rng.dirichlet(np.ones(variants), products * cohorts).ravel()
    shown = rng.binomial(impressions, share)
    places = np.array([f"{p}-{c}" for p, c in zip(product, cohort, strict=True)])
    return Examples(
        image_vectors=images,
        text_vectors=texts[cohort],
        figures={name: np.where(rng.random(n) < 0.1, np.nan, rng.random(n)) for name in REWARD_FIGURES},
        impressions=shown.astype(float),
        clicks=rng.binomial(shown, rates).astype(float),
        propensity=share,
        groups=product.astype(str),
        families=FAMILIES[cohort % 3],
        clip_scores=clip,
        cohorts=cohort.astype(str),
        places=places,
        variants=np.array([f"{p}-{v}" for p, v in zip(places, variant, strict=True)]),
    ), rates


def comparison(gain: Interval) -> Comparison:
    counts = {"creatives": 100, "impressions": 10_000, "clicks": 300}
    order = {"auc": 0.6, "clip_auc": 0.5, "auc_gain": gain}
    return Comparison(**counts, **order, log_loss=0.1, clip_log_loss=0.11, log_loss_gain=gain)


def head(
    kind: str = "reward",
    dimensions: int = 1,
    weights: dict[str, float] | None = None,
    intercept: float = 0.0,
    better: bool = True,
    threshold: float | None = 0.5,
    rejected: dict[str, np.ndarray] | None = None,
    clip_revision: str = "",
) -> Head:
    """A head that weighs the features it is told to, as they are: `image_0`, `cosine`, `clash`..."""
    names, rejected = REWARD_FIGURES if kind == "reward" else USABILITY_FIGURES, rejected or {}
    gain = Interval(mean=0.02, low=0.01 if better else -0.01, high=0.03)
    kinds: dict = {"reward": None, "usability": None, "scale": None}
    shared = {"creatives": 100, "products": 20, "calibration": [], "weights": {}}
    if kind == "reward":
        total = comparison(gain)
        kinds["scale"] = Scale(clip_mean=0.5, clip_sd=0.1, logit_mean=0.0, logit_sd=1.0)
        counts = {"impressions": 10_000, "clicks": 300, "marks": 0}
        kinds["reward"] = RewardFigures(**shared, **counts, total=total, families={}, surely_better=better)
    else:
        why = "" if threshold is not None else "at no threshold it is right often enough"
        precision = Interval(mean=0.95, low=0.9, high=0.97)
        found = {"rejected": 40, "threshold": threshold, "why": why, "precision": precision, "recall": None, "auc": 0.9}
        kinds["usability"] = UsabilityFigures(**shared, **found)
    card = Card(
        kind=kind,
        clip_revision=clip_revision,
        dimensions=dimensions,
        figures=names,
        calibration="platt",
        rejected=tuple(rejected),
        **kinds,
    )
    columns = feature_names(card)
    side = VECTORS * dimensions
    weigh = np.array([(weights or {}).get(name, 0.0) for name in columns])
    identity = np.eye(side)
    none = np.zeros(len(columns))
    regression = Regression(none, none + 1, identity, np.ones(side), weigh, intercept)
    vectors = np.array(list(rejected.values())) if rejected else np.zeros((0, 0))
    return Head(card, regression, Calibration("platt", np.array([1.0, 0.0])), vectors)
