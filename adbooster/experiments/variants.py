"""Which of several variants is shown, or which arm a pair is in: weights made probabilities, and a draw that follows from names."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.naming import PLACE, digest, position
from adbooster.experiments.groups import codes


def probabilities(weights: Sequence[float | None]) -> list[float]:
    """Probabilities (together 1) of what is there, by the weights that were allocated; null: nothing was allocated to it.

    One of n without a weight gets 1 / n, and the others divide the rest as their weights say.
    """
    even, known = 1 / len(weights), [weight for weight in weights if weight is not None]
    if sum(known) <= 0:
        return [even] * len(weights)
    rest = (1 - even * (len(weights) - len(known))) / sum(known)
    return [even if weight is None else rest * weight for weight in weights]


def bounds(probabilities: Sequence[float]) -> list[float]:
    """Where, between 0 and 1, one ends and the next begins; so a position belongs to the number of bounds up to it."""
    return list(accumulate(probabilities))[:-1]


def period(day: date, redraw_days: int) -> int:
    """The number of the days' period that a day is in, from the calendar's first day on; a draw holds as long."""
    return day.toordinal() // redraw_days


def draw(chances: Sequence[float], *names: str) -> int:
    """The index of one of them, drawn with its probability by the names alone: the same names, the same draw."""
    drawn = bisect_right(bounds(chances), position(digest("variant", *names)))
    return drawn if chances[drawn] else max(range(len(chances)), key=chances.__getitem__)


class Draws:
    """Which of the variants that are live in a place is shown, by what was allocated to them.

    Where nothing was allocated in a place, its best (the lowest rank) is shown. Else one of all its variants is drawn, with
    their `probabilities`, by names alone: the same until the allocation, the variants or the period are others.
    allocations  level, creative_id and weight of schema.ALLOCATIONS
    """

    def __init__(self, allocations: pa.Table, seed: int, number: int, held: Mapping[tuple, tuple[str, float]]):
        """number  of the period
        held    by PLACE, the creative that was drawn in this period before and its probability: both hold while it may be shown
        """
        self.held = held
        rows = allocations.filter(pc.equal(allocations["level"], "variant"))
        self.weights = dict(zip(rows["creative_id"].to_pylist(), rows["weight"].to_pylist(), strict=True))
        self.names = str(seed), str(number)

    def candidates(self, creatives: pa.Table) -> np.ndarray:
        """Whether each live creative may be drawn: every place's best, and all of a place that has an allocation (bool [n])."""
        own, place = pa.array(list(self.weights), pa.string()), codes(*(creatives[name] for name in PLACE))
        allocated, best = (np.zeros(int(place.max(initial=-1)) + 1, kind) for kind in (bool, np.int64))
        allocated[place[pc.is_in(creatives["creative_id"], own).to_numpy()]] = True
        rank = pc.fill_null(creatives["rank"], 0).to_numpy().astype(np.int64)
        best[:] = np.iinfo(np.int64).max
        np.minimum.at(best, place, rank)
        return allocated[place] | (rank == best[place])

    def of(self, variants: Sequence[dict]) -> tuple[dict, float]:
        """(the variant of a place that is shown, the probability with which it is), of rows of candidates."""
        ordered = sorted(variants, key=lambda v: v["creative_id"])
        place = tuple(ordered[0][name] for name in PLACE)
        creative_id, chance = self.held.get(place, ("", 0.0))
        if kept := [v for v in ordered if v["creative_id"] == creative_id]:
            return kept[0], chance
        chances = probabilities([self.weights.get(v["creative_id"]) for v in ordered])
        drawn = draw(chances, *self.names, *place)
        return ordered[drawn], chances[drawn]
