"""The regression below both heads: standardised, projected, its penalty (ridge) found on groups held out; and its calibration."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from adbooster.contracts.errors import ConfigError
from adbooster.reward.regression import LEAST, Calibration, Regression

PENALTIES = (0.003, 0.03, 0.3, 3.0)  # inverse strengths (C) among which groups held out decide
_INNER_FOLDS = 3
OTHER_FOLDS = 3  # parts of a second kind of groups, at most


@dataclass(frozen=True)
class Counts:
    """Weighted examples: of row i the positive and the negative weight, and the group that is held out as a whole.

    `apart` marks rows whose positives are of another kind than the others', and so have a base rate of their own.
    `units` are what rows are compared within, by number: their base rates are left out of account. None: all with all.
    `other` is a second kind of groups, which are held out at the same time; None: there is none.
    """

    positive: np.ndarray
    negative: np.ndarray
    groups: np.ndarray
    apart: np.ndarray
    units: np.ndarray | None = None
    other: np.ndarray | None = None

    def at(self, rows: np.ndarray) -> "Counts":
        some = self.positive[rows], self.negative[rows], self.groups[rows], self.apart[rows]
        return Counts(*some, *(None if v is None else v[rows] for v in (self.units, self.other)))

    def within(self, values: np.ndarray) -> np.ndarray:
        """Values [n] or [n,d] less the mean of their unit, by weight."""
        if self.units is None:
            return values
        weight, n = self.positive + self.negative, int(self.units.max(initial=-1)) + 1
        total = np.maximum(np.bincount(self.units, weight, n), LEAST)
        flat = values.reshape(len(values), -1)
        means = np.stack([np.bincount(self.units, weight * column, n) / total for column in flat.T], axis=1)
        return (flat - means[self.units]).reshape(values.shape)


@dataclass(frozen=True)
class Parts:
    """Which rows were held out together: by groups, and by the second kind of groups, [n] numbers each."""

    first: np.ndarray
    second: np.ndarray

    def at(self, rows: np.ndarray) -> "Parts":
        return Parts(self.first[rows], self.second[rows])

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows of a part, rows that share no group of either kind with any of it), as masks [n]."""
        several = bool(np.ptp(self.second)) if len(self.second) else False
        for a, b in sorted(set(zip(self.first.tolist(), self.second.tolist(), strict=True))):
            apart = (self.first != a) & ((self.second != b) | (not several))
            yield (self.first == a) & (self.second == b), apart


def fit(features: np.ndarray, counts: Counts, vectors: int, kinds: int, components: int) -> Regression:
    """The regression on all rows, with the penalty that does best on groups held out of them.

    vectors     how many of the first features are vectors, of `kinds` kinds side by side
    components  dimensions that each kind is projected onto, at most

    Where rows are compared within units, the regression has no base rate of its own (an intercept of 0).
    """
    shape = _shape(features, counts, vectors, kinds, components)
    inputs = np.concatenate([counts.within(shape.inputs(features)), counts.apart[:, None]], axis=1)
    losses = np.zeros(len(PENALTIES))
    for train, test in folds(counts.groups, _INNER_FOLDS):
        if not _both(some := counts.at(train)):
            continue
        left = counts.at(test)
        for i, penalty in enumerate(PENALTIES):
            weights, intercept = _logistic(inputs[train], some, penalty)
            losses[i] += log_losses(expit(inputs[test] @ weights + intercept), left.positive, left.negative).sum()
    weights, intercept = _logistic(inputs, counts, PENALTIES[int(losses.argmin())])
    base = intercept if counts.units is None else 0.0
    return Regression(shape.mean, shape.scale, shape.projection, shape.spread, weights[:-1], base)


def _shape(features: np.ndarray, counts: Counts, vectors: int, kinds: int, components: int) -> Regression:
    """Without weights: means of these rows, and scales and projections of how rows of one unit differ.

    By how all rows differ, the first dimensions would tell cohorts and products apart, and say little of the pictures of one place.
    """
    known = np.isfinite(features)
    n = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0).sum(axis=0) / n
    apart = np.where(known, features - mean, 0.0)
    overall = np.sqrt((apart**2).sum(axis=0) / n)
    apart = np.where(known, counts.within(apart), 0.0)
    scale = np.sqrt((apart**2).sum(axis=0) / n)
    # What differs in a unit by rounding alone tells nothing.
    scale = np.where(scale > 1e-3 * overall, scale, overall)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = apart[:, :vectors] / scale[:vectors]
    side = vectors // kinds if kinds else 0
    rows, spread = [], []
    for first in range(0, vectors, max(side, 1)):
        _, strength, axes = np.linalg.svd(x[:, first : first + side], full_matrices=False)
        strength = strength / np.sqrt(len(x))
        keep = [i for i in range(min(components, len(strength))) if strength[i] > 1e-6]
        some = np.zeros((len(keep), vectors))
        some[:, first : first + side] = axes[keep]
        rows.append(some)
        # One for all of a kind: the ways in which pictures differ little must not count as those in which they differ most.
        spread.append(np.full(len(keep), max(strength[keep], default=1.0)))
    projection = np.concatenate(rows) if rows else np.zeros((0, vectors))
    empty = np.zeros(0)
    return Regression(mean, scale, projection, np.concatenate(spread) if spread else empty, empty, 0.0)


def _logistic(inputs: np.ndarray, counts: Counts, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and intercept; examples carry as much information together as there are rows, so that one penalty means
    the same for any number of impressions."""
    positive, negative = counts.positive, counts.negative
    rate = positive.sum() / (positive.sum() + negative.sum())
    factor = len(inputs) / ((positive.sum() + negative.sum()) * rate * (1 - rate))
    y = np.repeat([1, 0], len(inputs))
    weights = np.concatenate([positive, negative]) * factor
    used = weights > 0
    model = LogisticRegression(C=penalty, solver="newton-cholesky", max_iter=100)  # many rows, some hundred inputs
    model.fit(np.concatenate([inputs, inputs])[used], y[used], weights[used])
    return np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])


def folds(groups: np.ndarray, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to train on, rows held out) by whole groups; as many parts as there are groups, at most n."""
    parts = min(n, len(np.unique(groups)))
    if parts > 1:
        yield from GroupKFold(parts).split(np.zeros(len(groups)), groups=groups)


def held_out(
    features: np.ndarray, counts: Counts, vectors: int, kinds: int, components: int, n_folds: int
) -> tuple[np.ndarray, Parts]:
    """Of every row its log odds by a regression that has seen none of its groups, and its part.

    raises  ConfigError where no part can be held out: one group alone, or positives in one part only
    """
    n = len(features)
    logits, parts = np.full(n, np.nan), Parts(np.zeros(n, int), np.zeros(n, int))
    for kind, names, most in ((parts.first, counts.groups, n_folds), (parts.second, counts.other, OTHER_FOLDS)):
        for number, (_, test) in enumerate(folds(names, most) if names is not None else ()):
            kind[test] = number
    named = "products" if counts.other is None else "products or cohorts"
    for here, apart in parts.each() if np.ptp(parts.first) else ():
        if not _both(some := counts.at(np.flatnonzero(apart))):
            raise ConfigError(f"what people liked, or did not, is of too few {named} to hold any of them out")
        logits[here] = fit(features[apart], some, vectors, kinds, components).logits(features[here])
    if not np.isfinite(logits).all():
        raise ConfigError("the examples are of one product; a head needs several, to be tried on one it has not seen")
    return logits, parts


def _both(counts: Counts) -> bool:
    return counts.positive.sum() > 0 and counts.negative.sum() > 0


def calibrate(method: Literal["platt", "isotonic"], logits: np.ndarray, counts: Counts) -> Calibration:
    """What makes probabilities of these log odds."""
    y = np.repeat([1.0, 0.0], len(logits))
    twice, weights = np.concatenate([logits, logits]), np.concatenate([counts.positive, counts.negative])
    used = weights > 0
    if method == "isotonic":
        model = IsotonicRegression(out_of_bounds="clip").fit(twice[used], y[used], weights[used])
        return Calibration("isotonic", np.asarray(model.X_thresholds_), np.asarray(model.y_thresholds_))
    middle, spread = float(np.mean(logits)), float(np.std(logits)) or 1.0
    model = LogisticRegression(C=1e6, max_iter=2000)
    model.fit(((twice[used] - middle) / spread)[:, None], y[used], weights[used] / weights[used].mean())
    slope, offset = float(np.ravel(model.coef_)[0]) / spread, float(np.ravel(model.intercept_)[0])
    if slope < 0:  # what orders the wrong way says nothing: everything has the rate of all
        slope, offset = 0.0, float(np.log(counts.positive.sum() / counts.negative.sum()))
    return Calibration("platt", np.array([slope, offset - slope * middle]))


def calibrated(method: Literal["platt", "isotonic"], logits: np.ndarray, counts: Counts, parts: Parts) -> np.ndarray:
    """Probabilities [n] of held-out log odds, each part's by what the parts say that share no group with it."""
    out = np.zeros(len(logits))
    for here, others in parts.each():
        rows = others if _both(counts.at(others)) else np.ones(len(logits), bool)
        out[here] = calibrate(method, logits[rows], counts.at(rows)).probabilities(logits[here])
    return out


def relative_losses(logits: np.ndarray, counts: Counts, parts: Parts) -> np.ndarray:
    """Of each row, in nats, where the rate of its unit is known and log odds [n] tell rows of the unit apart.

    How much they count is one slope, 0 or more (an order that is wrong elsewhere predicts nothing here), found for each part
    on the others.
    """
    apart, base = counts.within(logits), _base(counts)
    most = 20 / max(float(np.abs(apart).max(initial=0)), LEAST)
    out = np.zeros(len(logits))
    for here, others in parts.each():

        def losses(slope: float, rows: np.ndarray) -> np.ndarray:
            return log_losses(expit(base + slope * apart)[rows], counts.positive[rows], counts.negative[rows])

        found = optimize.minimize_scalar(lambda slope: losses(slope, others).sum(), bounds=(0, most), method="bounded")  # noqa: B023
        out[here] = losses(found.x if losses(found.x, others).sum() < losses(0.0, others).sum() else 0.0, here)
    return out


def _base(counts: Counts) -> np.ndarray:
    """Log odds of the rate of each row's unit, with one positive at the rate of all more."""
    units = np.zeros(len(counts.positive), int) if counts.units is None else counts.units
    positive, negative = (np.bincount(units, v) for v in (counts.positive, counts.negative))
    rate = counts.positive.sum() / (counts.positive.sum() + counts.negative.sum())
    share = (positive + 1) / (positive + negative + 1 / rate)
    return np.log(share / (1 - share))[units]


def log_losses(probabilities: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Of each row, in nats."""
    p = probabilities.clip(LEAST, 1 - LEAST)
    return -(positive * np.log(p) + negative * np.log1p(-p))
