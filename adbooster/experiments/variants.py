"""Which of several variants is shown, or which arm a pair is in: weights made probabilities, and a draw that follows from names."""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import date
from itertools import accumulate

from adbooster.contracts.naming import digest

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
