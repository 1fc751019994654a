"""What showing other variants would have brought, from what was shown with known probabilities.

A policy shows one variant of every place: the one with the highest score. The clicks an impression that it would bring are
estimated from impressions logged under another policy, by self-normalised inverse propensities (Swaminathan & Joachims,
2015) and doubly robust (Dudik, Langford & Li, 2011).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adbooster.reward.config import Value
from adbooster.reward.resampling import Clusters


@dataclass(frozen=True)
class Logged:
    """Logged rows [n]: what a variant of a place brought on a day, and the probability with which it was shown that day.

    groups  product ids, whose rows are drawn together for the intervals
    """

    places: np.ndarray
    variants: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray
    propensity: np.ndarray
    groups: np.ndarray


def values(
    logged: Logged, scores: np.ndarray, clip_scores: np.ndarray, predicted: np.ndarray, resamples: int = 1000
) -> list[Value]:
    """Values of showing what the learned scores [n] prefer, and what CLIP [n] prefers, by both estimators.

    predicted  probability of a click [n] by a model that has not seen the row's product
    returns    nothing where no impression with a known propensity is of a place with two variants: the choice is among
               variants that were logged, and places with one alone say nothing of it
    """
    known = np.isfinite(logged.propensity) & (logged.impressions > 0)
    places = np.unique(logged.places.astype(str), return_inverse=True)[1]
    variants = np.unique(logged.variants.astype(str), return_inverse=True)[1]
    pairs = np.unique(np.stack([places[known], variants[known]]), axis=1)
    several = np.bincount(pairs[0], minlength=places.max(initial=0) + 1) > 1
    rows = known & several[places]
    if not rows.any():
        return []
    some = Logged(*(values[rows] for values in vars(logged).values()))
    at = np.unique(places[rows], return_inverse=True)[1]
    clusters = Clusters(some.groups, resamples)
    ours, theirs = (chosen(at, variants[rows], score[rows]) for score in (scores, clip_scores))
    weights = ours / some.propensity
    squares = (weights**2 * some.impressions).sum()
    effective = (weights * some.impressions).sum() ** 2 / squares if squares else 0.0
    both = []
    for name, estimate in _ESTIMATORS:
        first, second = (estimate(some, at, taken, predicted[rows]) for taken in (ours, theirs))
        both.append(
            Value(
                method=name,
                by_score=clusters.ratio(*first),
                by_clip=clusters.ratio(*second),
                gain=clusters.difference(first, second),
                effective_impressions=float(effective),
            )
        )
    return [v for v in both if np.isfinite([v.by_score.mean, v.by_clip.mean]).all()]


def chosen(places: np.ndarray, variants: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each row [n] the policy's probability of its variant: 1 for the best-scored of its place, else 0.

    places, variants  numbers; of variants with one score the lowest number is taken
    """
    order = np.lexsort((variants, -scores, places))
    first = np.unique(places[order], return_index=True)[1]
    best = np.zeros(places.max(initial=0) + 1, int)
    best[places[order][first]] = variants[order][first]
    return (variants == best[places]).astype(float)


def snips(
    logged: Logged, places: np.ndarray, taken: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Terms [n] over whose sums the value is a ratio: weighted clicks, weighted impressions."""
    weights = taken / logged.propensity
    return weights * logged.clicks, weights * logged.impressions


def doubly_robust(
    logged: Logged, places: np.ndarray, taken: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same: of every logged impression what the model predicts for the policy's choice in its place, and the
    model's weighted error where that was shown; and impressions."""
    weights = taken / logged.propensity
    n = places.max() + 1
    of_choice = np.bincount(places, taken * predicted, n) / np.maximum(np.bincount(places, taken, n), 1)
    errors = weights * (logged.clicks - logged.impressions * predicted)
    return logged.impressions * of_choice[places] + errors, logged.impressions


_ESTIMATORS: tuple[tuple[Literal["snips", "doubly_robust"], Callable], ...] = (
    ("snips", snips),
    ("doubly_robust", doubly_robust),
)
