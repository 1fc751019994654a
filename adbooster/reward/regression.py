"""What a head computes: features to log odds, log odds to a probability. No library of learning is needed for it."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit

LEAST = 1e-6  # nearest that a probability comes to 0 or 1


@dataclass(frozen=True)
class Regression:
    """Features [n,d] to log odds [n]: standardised, vectors projected, a logistic regression on what results.

    mean, scale         [d]; a missing figure counts as its mean
    projection          [k,v] of the first v features, the vectors; the others pass as they are
    spread              [k], what the projected vectors are divided by
    weights, intercept  [k + d - v] and a number
    """

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    intercept: float

    def logits(self, features: np.ndarray) -> np.ndarray:
        return self.inputs(features) @ self.weights + self.intercept

    def inputs(self, features: np.ndarray) -> np.ndarray:
        x = np.nan_to_num((features - self.mean) / self.scale, nan=0.0)
        vectors = self.projection.shape[1]
        return np.concatenate([x[:, :vectors] @ self.projection.T / self.spread, x[:, vectors:]], axis=1)


@dataclass(frozen=True)
class Calibration:
    """Log odds to probabilities: a curve (Platt, 1999), or steps that only rise (Zadrozny & Elkan, 2002).

    platt     x holds slope and offset, y is empty
    isotonic  between the points (x, y) it is linear, beyond them constant
    """

    method: Literal["platt", "isotonic"]
    x: np.ndarray
    y: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        if self.method == "platt":
            return expit(self.x[0] * logits + self.x[1]).clip(LEAST, 1 - LEAST)
        return np.interp(logits, self.x, self.y).clip(LEAST, 1 - LEAST)
