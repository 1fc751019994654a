"""Which candidates of a request become creatives: from the best on, each unlike those already chosen."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Contest:
    """The candidates of one request and round, gone through from the best until enough have passed the gates.

    scores     [K]; a candidate at or below `floor` is no creative
    wanted     [K], what they are chosen by
    scenes     [K,D] unit vectors of the scenes, or [K,1] zeros
    most       candidates to choose; 0 <= diversity <= 1
    """

    scores: np.ndarray
    wanted: np.ndarray
    scenes: np.ndarray
    floor: float
    most: int
    diversity: float
    chosen: list[int] = field(default_factory=list)
    turned_down: bool = False
    left: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.left = list(range(len(self.scores)))

    def next(self) -> int | None:
        """The candidate to look at next; None: the contest is over. `choose` or `turn_down` it before the next call."""
        while self.left and len(self.chosen) < self.most:
            i = next_best(self.left, self.chosen, self.wanted, self.scenes, self.diversity)
            self.left.remove(i)
            if self.scores[i] > self.floor:
                return i
        return None

    def choose(self, i: int) -> None:
        self.chosen.append(i)

    def turn_down(self) -> None:
        self.turned_down = True

    @property
    def again(self) -> bool:
        """Whether another round is worth it: scenes that fit but failed a gate; scenes that do not fit are not."""
        return self.turned_down and not self.chosen


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
