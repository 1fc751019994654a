"""What creatives add over the original pictures of held-out pairs, with intervals that hold on every day they are looked at."""

from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special

from adbooster.contracts.evaluation import GroupLift, Interval, Lift, LiftDay
from adbooster.experiments.config import Allocation
from adbooster.experiments.groups import codes
from adbooster.experiments.robots import human_clicks

ALPHA = 0.05
MIN_PAIRS = 8  # on a side, below which no interval is given
MIN_CLICKS = 10  # on a side, as before
_SUMS = 9  # of `_running`
EXPECTED = 0.2  # standard deviation of the lifts that intervals are narrowest for: 20 %


def lift(outcomes: pa.Table, max_ctr_factor: float = Allocation().max_ctr_factor) -> Lift:
    """The lift of creatives over the originals of held-out pairs, together and by family, day by day.

    outcomes        rows of schema.OUTCOMES
    max_ctr_factor  as Allocation.max_ctr_factor

    What was divided at random are pairs, so they are the clusters: a rate is a ratio estimator over pairs and its variance
    the delta method's (Cochran, 1977, 6), a click-through rate that differs by pair included. Both sides count a day alike,
    with the weight of Mantel and Haenszel (1959), n1 n0 / (n1 + n0) impressions: days on which one side was not shown count
    for nothing, and a share of held-out pairs that changes is no lift. A pair that changed sides counts from then on.
    Intervals are normal-mixture confidence sequences (Robbins, 1970; Howard et al., 2021; Johari et al., 2017) in information
    1 / variance, widened by Student's t for the number of pairs.
    """
    counted = outcomes.filter(pc.and_kleene(pc.greater(outcomes["impressions"], 0), pc.is_valid(outcomes["control"])))
    clicks = human_clicks(counted, max_ctr_factor)
    lost = int(pc.sum(counted["clicks"]).as_py() or 0) - int(clicks.sum())
    families, days, rows = _pair_days(counted, clicks)
    if not days:
        return Lift(together=_group("all", days, np.zeros((_SUMS, 2, 0)), np.zeros((3, 2))))
    alone, every = np.zeros(len(rows.day), np.int64), len(families)
    together, of_family = _running(rows, alone, 1, len(days)), _running(rows, rows.family, every, len(days))
    all_of, of_each = _totals(rows, alone, 1), _totals(rows, rows.family, every)
    return Lift(
        together=_group("all", days, together[:, 0], all_of[:, 0]),
        families=[_group(name, days, of_family[:, i], of_each[:, i]) for i, name in enumerate(families)],
        robot_clicks=lost,
    )


class _PairDays(NamedTuple):
    """What each pair brought on each of its days, in the order of pairs and days; arrays are [n]."""

    pair: np.ndarray
    """number of product, cohort and family"""
    family: np.ndarray
    side: np.ndarray
    """0 creatives, 1 originals"""
    day: np.ndarray
    impressions: np.ndarray
    clicks: np.ndarray


def _pair_days(rows: pa.Table, clicks: np.ndarray) -> tuple[list[str], list[date], _PairDays]:
    """Families, days in order, and what counts of each pair: all since it is on the side that it was on last."""
    family_names = pc.fill_null(rows["family"], "").combine_chunks().dictionary_encode()
    day_names = rows["day"].combine_chunks().dictionary_encode()
    ordered = sorted(range(len(day_names.dictionary)), key=lambda i: day_names.dictionary[i].as_py())
    rank = np.zeros(len(ordered), np.int64)
    rank[ordered] = np.arange(len(ordered))
    family, day = family_names.indices.to_numpy().astype(np.int64), rank[day_names.indices.to_numpy()]
    side = rows["control"].combine_chunks().cast(pa.int64()).to_numpy()
    both = codes(rows["product_id"], rows["cohort_id"])
    last = np.full((int(both.max(initial=-1)) + 1, 2), -1)
    np.maximum.at(last, (both, side), day)
    kept = np.flatnonzero(day > last[both, 1 - side])
    pair = codes(rows["product_id"], rows["cohort_id"], family_names.indices)
    pair_day, at = np.unique(pair[kept] * max(1, len(ordered)) + day[kept], return_inverse=True)
    first = np.zeros(len(pair_day), np.int64)
    first[at] = kept
    counts = (np.bincount(at, values[kept], len(first)) for values in (rows["impressions"].to_numpy(), clicks))
    found = _PairDays(pair[first], family[first], side[first], day[first], *counts)
    return family_names.dictionary.to_pylist(), [day_names.dictionary[i].as_py() for i in ordered], found


def _totals(rows: _PairDays, group: np.ndarray, groups: int) -> np.ndarray:
    """Pairs, impressions and clicks of both sides on all days, float64 [3,groups,2]."""
    cell = group * 2 + rows.side
    counts = (_first(rows.pair), rows.impressions, rows.clicks)
    return np.array([np.bincount(cell, values, groups * 2).reshape(groups, 2) for values in counts])


def _running(rows: _PairDays, group: np.ndarray, groups: int, days: int) -> np.ndarray:
    """Sums over pairs of all compared outcomes up to each day, float64 [_SUMS,groups,2,days].

    Weighted: n, c, n^2, nc, c^2 of impressions n and clicks c, and the weights' squares times impressions; then as they
    are: pairs, impressions, clicks.
    """
    shape = (groups, 2, days)
    cell = np.ravel_multi_index((group, rows.side, rows.day), shape)
    shown = np.bincount(cell, rows.impressions, np.prod(shape)).reshape(shape)
    weight = (shown[:, ::-1] / np.maximum(shown.sum(axis=1, keepdims=True), 1)).ravel()[cell]
    some = weight > 0
    weight, cell, pair = weight[some], cell[some], rows.pair[some]
    impressions, clicks, new = rows.impressions[some], rows.clicks[some], _first(pair)
    n, c = _within(weight * impressions, pair), _within(weight * clicks, pair)
    grown = []
    for total in (n, c, n * n, n * c, c * c):  # what each sum grows by on the day, as the pair goes on
        grown.append(total - np.where(new, 0, np.r_[0, total[:-1]][: len(total)]))
    sums = [np.bincount(cell, v, np.prod(shape)) for v in (*grown, weight**2 * impressions, new, impressions, clicks)]
    return np.cumsum(np.array(sums).reshape(_SUMS, *shape), axis=-1)


def _first(group: np.ndarray) -> np.ndarray:
    """Whether a row is the first of its group; equal groups stand side by side."""
    return np.r_[True, group[1:] != group[:-1]][: len(group)]


def _within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Running sums within each group; equal groups stand side by side."""
    total = np.cumsum(values)
    return total - np.maximum.accumulate(np.where(_first(group), total - values, 0))


def _group(family: str, days: list[date], sums: np.ndarray, totals: np.ndarray) -> GroupLift:
    """One group from its running sums, float64 [_SUMS,2,days]; where nothing is compared, it has its `totals` [3,2]."""
    compared = np.flatnonzero((sums[0] > 0).all(axis=0))
    last = sums[6:, :, -1] if len(compared) else totals
    group = GroupLift(
        family=family,
        pairs=int(last[0, 0]),
        control_pairs=int(last[0, 1]),
        impressions=int(last[1, 0]),
        control_impressions=int(last[1, 1]),
        clicks=int(last[2, 0]),
        control_clicks=int(last[2, 1]),
    )
    if not len(compared):
        both = "creatives and originals of held-out pairs have not been shown on one day"
        side = "no original of a held-out pair has been shown" if group.impressions else "no creative has been shown"
        note = f"{both if (last[1] > 0).all() else side}: there is nothing to compare with"
        return group.model_copy(update={"note": note})
    lifts, differences, told = _intervals(sums)
    path = [LiftDay(day=days[i], lift=lifts[i], difference=differences[i]) for i in compared]
    result, note = path[-1].lift, ""
    if not told[-1]:
        note = (
            f"no interval below {MIN_PAIRS} pairs and {MIN_CLICKS} clicks a side: creatives have {group.pairs} and "
            f"{group.clicks}, originals {group.control_pairs} and {group.control_clicks}"
        )
    sure = result is not None and result.low is not None and result.high is not None and result.low * result.high > 0
    found = {"lift": result, "difference": path[-1].difference, "sure": sure, "note": note, "path": path}
    return group.model_copy(update=found)


def _intervals(sums: np.ndarray) -> tuple[list[Interval | None], list[Interval], np.ndarray]:
    """Of every day the relative lift, the difference, and whether there are intervals."""
    n, c, nn, nc, cc, squared, k, _, clicks = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = c / n
        spread = (cc - 2 * rate * nc + rate * rate * nn) / n**2 * k / np.maximum(k - 1, 1)
        variance = np.maximum(
            spread, rate * (1 - rate) * squared / n**2
        )  # never less than clicks of people who know no pairs
        freedom = np.maximum(n * n / nn - 1, 1)  # of pairs as if all were shown alike
        told = (k >= MIN_PAIRS).all(axis=0) & (clicks >= MIN_CLICKS).all(axis=0)
        difference, ratio = rate[0] - rate[1], np.log(rate[0] / rate[1])
        base = rate[1][told][0] if told.any() else 1.0  # of the first day that is told: known before all later ones
        half = _half_width(variance, freedom, EXPECTED * base)
        half_ratio = _half_width(variance / rate**2, freedom, EXPECTED)
    differences = [_interval(d, d - h, d + h, t) for d, h, t in zip(difference, half, told, strict=True)]
    lifts = [
        _interval(np.expm1(r), np.expm1(r - h), np.expm1(r + h), t) if c1 > 0 else None
        for r, h, t, c1 in zip(ratio, half_ratio, told, c[1], strict=True)
    ]
    return lifts, differences, told


def _half_width(variance: np.ndarray, freedom: np.ndarray, expected: float) -> np.ndarray:
    """Half the width of the confidence sequence of a difference of two sides; float64 [days] from [2,days]."""
    both = variance.sum(axis=0)
    information, prior = 1 / both, 1 / expected**2
    together = both**2 / (variance**2 / freedom).sum(axis=0)  # Welch and Satterthwaite
    student = special.stdtrit(together, 1 - ALPHA / 2) / special.ndtri(1 - ALPHA / 2)
    grown = information + prior
    return student * np.sqrt(grown * np.log(grown / prior / ALPHA**2)) / information


def _interval(mean: float, low: float, high: float, told: bool) -> Interval:
    if not told:
        return Interval(mean=float(mean))
    return Interval(mean=float(mean), low=float(low), high=float(high))
