"""Creatives, an audience and its clicks, made from a seed: what is learned can be compared with what is true."""

import numpy as np

from adbooster.reward.features import REWARD_FIGURES
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
