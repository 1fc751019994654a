"""Which candidate of a request to take next: good, and unlike those already chosen."""

from collections.abc import Iterable

import numpy as np


def next_best(left: list[int], chosen: list[int], scores: np.ndarray, vectors: np.ndarray, diversity: float) -> int:
    """The candidate to take next by maximal marginal relevance (Carbonell & Goldstein, 1998); ties go to the first.

    scores [K]; vectors [K,D] unit vectors of the scenes; 0 <= diversity <= 1
    """
    if not chosen:
        return left[int(np.argmax(scores[left]))]
    alike = (vectors[left] @ vectors[chosen].T).max(axis=1)
    return left[int(np.argmax((1 - diversity) * scores[left] - diversity * alike))]


def fitting(scores: np.ndarray, clashes: Iterable[float], weight: float) -> np.ndarray:
    """What candidates are chosen by: their scores [K] less `weight` for a scene that clashes with the product fully."""
    return scores - weight * np.fromiter(clashes, float, len(scores))
