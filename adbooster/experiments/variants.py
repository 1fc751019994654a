"""Which of several variants is shown, or which arm a pair is in: weights made probabilities, and a draw that follows from names."""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import date
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.naming import digest, row_keys

_PLACE = ("product_id", "cohort_id", "placement")
_SCALE = float(1 << 32)


def shares(weights: Sequence[float | None]) -> list[float]:
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


def draw(probabilities: Sequence[float], *names: str) -> int:
    """The index of one of them, drawn with its probability by the names alone: the same names, the same draw."""
    position = int(digest("variant", *names)[:8], 16) / _SCALE
    drawn = bisect_right(bounds(probabilities), position)
    return drawn if probabilities[drawn] else max(range(len(probabilities)), key=probabilities.__getitem__)


class Draws:
    """Which of the variants that are live in a place is shown, by what was allocated to them.

    Where nothing was allocated in a place, its best (rank 0) is shown. Else one of all its variants is drawn, with the
    probabilities of `shares`, by names alone: the same until the allocation, the variants or the period are others.
    allocations  level, creative_id and weight of schema.ALLOCATIONS
    """

    def __init__(self, allocations: pa.Table, seed: int, number: int):
        """number  of the period"""
        rows = allocations.filter(pc.equal(allocations["level"], "variant"))
        self.weights = dict(zip(rows["creative_id"].to_pylist(), rows["weight"].to_pylist(), strict=True))
        self.names = str(seed), str(number)

    def candidates(self, creatives: pa.Table) -> pa.Table:
        """Of live creatives those that may be shown: every place's best, and all of a place that has an allocation."""
        own, there = pa.array(list(self.weights), pa.string()), row_keys(creatives, _PLACE)
        allocated = there.filter(pc.is_in(creatives["creative_id"].combine_chunks(), own))
        return creatives.filter(pc.or_(pc.equal(creatives["rank"], 0), pc.is_in(there, allocated)))

    def of(self, variants: Sequence[dict]) -> tuple[dict, float]:
        """(the variant of a place that is shown, the probability with which it is), of rows of candidates."""
        ordered = sorted(variants, key=lambda v: v["creative_id"])
        chances = shares([self.weights.get(v["creative_id"]) for v in ordered])
        drawn = draw(chances, *self.names, *(ordered[0][name] for name in _PLACE))
        return ordered[drawn], chances[drawn]
