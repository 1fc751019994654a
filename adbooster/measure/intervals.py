"""Means with confidence intervals: bootstrap over products as clusters, Wilson for shares."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from adbooster.contracts.evaluation import Interval

LEVEL = 0.95
RESAMPLES = 4000


def mean(values: np.ndarray, clusters: Sequence[str], resamples: int = RESAMPLES) -> Interval | None:
    """The mean of values, NaN left out; None if none is left.

    clusters  one name a value. Whole clusters are resampled (Cameron, Gelbach & Miller, 2008), because pictures of one
              product are alike: single pictures as the unit would give intervals that are too narrow
    """
    values = np.asarray(values, np.float64)
    present = np.isfinite(values)
    if not present.any():
        return None
    sums, counts = _by_cluster(clusters, present, np.where(present, values, 0), present)
    return _bootstrap(lambda s, n, axis=-1: s.sum(axis) / n.sum(axis), (sums, counts), resamples)


def difference(over: np.ndarray, under: np.ndarray, clusters: Sequence[str]) -> Interval | None:
    """mean(over - under) over pairs, a pair with a NaN left out."""
    return mean(np.asarray(over, np.float64) - np.asarray(under, np.float64), clusters)


def ratio(over: np.ndarray, under: np.ndarray, clusters: Sequence[str], resamples: int = RESAMPLES) -> Interval | None:
    """mean(over) / mean(under) - 1 over pairs, a pair with a NaN left out.

    None where mean(under) is not surely positive (its own interval reaches zero): such a ratio is meaningless.
    A ratio of means, not a mean of ratios: a single similarity may be near zero or below, where a ratio is void.
    """
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    present = np.isfinite(over) & np.isfinite(under)
    base = mean(np.where(present, under, np.nan), clusters, resamples)
    if base is None or (base.mean if base.low is None else base.low) <= 0:
        return None
    sums = _by_cluster(clusters, present, np.where(present, over, 0), np.where(present, under, 0))
    return _bootstrap(lambda a, b, axis=-1: a.sum(axis) / b.sum(axis) - 1, sums, resamples)


def share(hits: int, of: int) -> Interval:
    """hits / of with Wilson's score interval (Wilson, 1927); `of` is 1 at least."""
    ends = stats.binomtest(hits, of).proportion_ci(LEVEL, method="wilson")
    return Interval(mean=hits / of, low=float(ends.low), high=float(ends.high))


def correlation(x: np.ndarray, y: np.ndarray, resamples: int = RESAMPLES) -> Interval | None:
    """Spearman's rank correlation with a paired bootstrap interval; None for fewer than 4 pairs or a constant side."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None

    def spearman(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        a, b = stats.rankdata(a, axis=axis), stats.rankdata(b, axis=axis)
        a, b = a - a.mean(axis, keepdims=True), b - b.mean(axis, keepdims=True)
        return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))

    return _bootstrap(spearman, (x, y), resamples)


def _by_cluster(clusters: Sequence[str], present: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums of each array over every cluster that has a value."""
    names = np.asarray(clusters, dtype=object)[present]
    _, at = np.unique(names.astype(str), return_inverse=True)
    first, second = (np.bincount(at, np.asarray(v, np.float64)[present]) for v in values)
    return first, second


def _bootstrap(statistic: Callable, data: tuple[np.ndarray, ...], resamples: int) -> Interval:
    """BCa (Efron, 1987) by scipy; percentiles where its correction is not defined; the ends null where neither is."""
    value = float(statistic(*data))
    if len(data[0]) < 2:
        return Interval(mean=value)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # degenerate data is reported by null ends
        for method in ("BCa", "percentile"):
            ends = stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                confidence_level=LEVEL,
                method=method,
                rng=np.random.default_rng(0),
                batch=500,
            ).confidence_interval
            if np.isfinite([ends.low, ends.high]).all():
                return Interval(mean=value, low=float(ends.low), high=float(ends.high))
    return Interval(mean=value)
