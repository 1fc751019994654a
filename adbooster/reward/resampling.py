"""Intervals of figures over products as clusters, and the order that scores bring weighted examples into."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from adbooster.contracts.evaluation import Interval
from adbooster.reward.config import Bin

LEVEL = 0.95
RESAMPLES = 1000


class Clusters:
    """Whole clusters are drawn anew (Cameron, Gelbach & Miller, 2008): pictures of one product are alike.

    clusters  one name a row; ends are null where there is one cluster alone
    """

    def __init__(self, clusters: np.ndarray, resamples: int = RESAMPLES):
        names, self.at = np.unique(clusters.astype(str), return_inverse=True)
        self.n = len(names)
        self.draws = np.random.default_rng(0).multinomial(self.n, np.full(self.n, 1 / self.n), resamples)

    def ratio(self, over: np.ndarray, under: np.ndarray) -> Interval:
        """sum(over) / sum(under) over rows."""
        a, b = (np.bincount(self.at, v, self.n) for v in (over, under))
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._interval(float(over.sum() / under.sum()), (self.draws @ a) / (self.draws @ b))

    def difference(self, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> Interval:
        """Of two such ratios, (over, under) each."""
        sums = [np.bincount(self.at, v, self.n) for v in (*first, *second)]
        with np.errstate(invalid="ignore", divide="ignore"):
            value = first[0].sum() / first[1].sum() - second[0].sum() / second[1].sum()
            a, b, c, d = (self.draws @ s for s in sums)
            return self._interval(float(value), a / b - c / d)

    def of(self, statistic: Callable[[np.ndarray], float]) -> Interval:
        """Of any figure of row weights [n]: how often each row was drawn."""
        value = statistic(np.ones(len(self.at)))
        return self._interval(value, np.array([statistic(drawn[self.at].astype(float)) for drawn in self.draws]))

    def _interval(self, value: float, drawn: np.ndarray) -> Interval:
        drawn = drawn[np.isfinite(drawn)]
        if self.n < 2 or not len(drawn):
            return Interval(mean=value)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(mean=value, low=float(low), high=float(high))


class Order:
    """Rows by their scores within strata: `auc` is how often a positive one is above a negative one of its stratum."""

    def __init__(self, scores: np.ndarray, strata: np.ndarray):
        _, stratum = np.unique(strata.astype(str), return_inverse=True)
        _, level = np.unique(scores, return_inverse=True)
        cells, self.cell = np.unique(stratum * (level.max() + 1) + level, return_inverse=True)
        of_cell = cells // (level.max() + 1)
        self.first = np.searchsorted(of_cell, np.unique(of_cell))
        self.stratum = of_cell

    def auc(self, positive: np.ndarray, negative: np.ndarray) -> float:
        """0-1 of row weights [n], ties count half; NaN where nothing compares.

        Strata count as the smaller of their sides does (p q / (p + q)), so that a large one does not decide by its square.
        """
        n = len(self.stratum)
        p, q = (np.bincount(self.cell, v, n) for v in (positive, negative))
        before = np.cumsum(q) - q
        below = before - before[self.first][self.stratum]
        positives, negatives = np.add.reduceat(p, self.first), np.add.reduceat(q, self.first)
        total = np.maximum(positives + negatives, 1e-12)
        right = np.add.reduceat(p * (below + q / 2), self.first) / total
        pairs = (positives * negatives / total).sum()
        return float(right.sum() / pairs) if pairs > 0 else float("nan")


def bins(probabilities: np.ndarray, positive: np.ndarray, negative: np.ndarray, n: int = 10) -> list[Bin]:
    """Predictions and what was observed, in n parts of like weight; observed with Wilson's interval."""
    order = np.argsort(probabilities, kind="stable")
    weight = (positive + negative)[order]
    at = np.minimum((np.cumsum(weight) - weight / 2) / max(weight.sum(), 1e-12) * n, n - 1).astype(int)
    out = []
    for number in np.unique(at[weight > 0]):
        rows = order[(at == number) & (weight > 0)]
        total, hits = float((positive + negative)[rows].sum()), float(positive[rows].sum())
        mean = float(np.average(probabilities[rows], weights=(positive + negative)[rows]))
        out.append(Bin(predicted=mean, observed=wilson(hits, total), n=total))
    return out


def wilson(hits: float, of: float) -> Interval:
    """hits / of with Wilson's score interval (Wilson, 1927); counts may be weights."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    share, extra = hits / of, z * z / of
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * float(np.sqrt(max(0.0, share * (1 - share) / of + extra / (4 * of))))
    return Interval(mean=share, low=max(0.0, middle - half), high=min(1.0, middle + half))
