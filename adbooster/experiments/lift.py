"""What creatives add over the original pictures of held-out pairs, with intervals that hold on every day they are looked at."""

from datetime import date

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
EXPECTED = 0.2  # standard deviation of the lifts that intervals are narrowest for: 20 %


def lift(outcomes: pa.Table, max_ctr_factor: float = Allocation().max_ctr_factor) -> Lift:
    """The lift of creatives over the originals of held-out pairs, together and by family, day by day.

    outcomes        rows of schema.OUTCOMES
    max_ctr_factor  as Allocation.max_ctr_factor

    What was divided at random are pairs, so they are the clusters: a rate is a ratio estimator over pairs and its variance
    the delta method's (Cochran, 1977, 6), a click-through rate that differs by pair included. Intervals are normal-mixture
    confidence sequences (Robbins, 1970; Howard et al., 2021; Johari et al., 2017) in information 1 / variance, widened by
    Student's t for the number of pairs.
    """
    counted = outcomes.filter(pc.and_kleene(pc.greater(outcomes["impressions"], 0), pc.is_valid(outcomes["control"])))
    clicks = human_clicks(counted, max_ctr_factor)
    lost = int(pc.sum(counted["clicks"]).as_py() or 0) - int(clicks.sum())
    families, days, sums = _running(counted, clicks)
    if not days:
        return Lift(together=_group("all", days, np.zeros((6, 2, 0))))
    return Lift(
        together=_group("all", days, sums.sum(axis=1)),
        families=[_group(name, days, sums[:, at]) for at, name in enumerate(families)],
        robot_clicks=lost,
    )


def _running(rows: pa.Table, clicks: np.ndarray) -> tuple[list[str], list[date], np.ndarray]:
    """Families, days, and sums over pairs of all outcomes up to each day, float64 [6,families,2,days].

    The six: pairs, impressions n, clicks c, n^2, nc, c^2; of two sides, creatives and originals.
    """
    family_names = pc.fill_null(rows["family"], "").combine_chunks().dictionary_encode()
    day_names = rows["day"].combine_chunks().dictionary_encode()
    ordered = sorted(range(len(day_names.dictionary)), key=lambda i: day_names.dictionary[i].as_py())
    rank = np.zeros(len(ordered), np.int64)
    rank[ordered] = np.arange(len(ordered))
    family, day = family_names.indices.to_numpy().astype(np.int64), rank[day_names.indices.to_numpy()]
    side = rows["control"].combine_chunks().cast(pa.int64()).to_numpy()
    pair = codes(rows["product_id"], rows["cohort_id"], family_names.indices, rows["control"])
    pair_day, at = np.unique(pair * max(1, len(ordered)) + day, return_inverse=True)
    first = np.zeros(len(pair_day), np.int64)
    first[at] = np.arange(len(at))
    n = _within(np.bincount(at, rows["impressions"].to_numpy()), pair[first])
    c = _within(np.bincount(at, clicks), pair[first])
    new = np.r_[True, pair[first][1:] != pair[first][:-1]][: len(first)]
    shape = (len(family_names.dictionary), 2, len(ordered))
    cell = np.ravel_multi_index((family[first], side[first], day[first]), shape)
    sums = [np.bincount(cell, new, np.prod(shape))]
    for total in (n, c, n * n, n * c, c * c):  # what each sum grows by on the day, as the pair goes on
        before = np.where(new, 0, np.r_[0, total[:-1]][: len(total)])
        sums.append(np.bincount(cell, total - before, np.prod(shape)))
    running = np.cumsum(np.array(sums).reshape(6, *shape), axis=-1)
    return family_names.dictionary.to_pylist(), [day_names.dictionary[i].as_py() for i in ordered], running


def _within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Running sums within each group; equal groups stand side by side."""
    total = np.cumsum(values)
    start = np.r_[True, group[1:] != group[:-1]][: len(group)]
    return total - np.maximum.accumulate(np.where(start, total - values, 0))


def _group(family: str, days: list[date], sums: np.ndarray) -> GroupLift:
    """One group from its running sums, float64 [6,2,days]."""
    last = sums[:, :, -1] if days else np.zeros((6, 2))
    group = GroupLift(
        family=family,
        pairs=int(last[0, 0]),
        control_pairs=int(last[0, 1]),
        impressions=int(last[1, 0]),
        control_impressions=int(last[1, 1]),
        clicks=int(last[2, 0]),
        control_clicks=int(last[2, 1]),
    )
    if not (last[1] > 0).all():
        side = "no original of a held-out pair" if group.impressions else "no creative"
        return group.model_copy(update={"note": f"{side} has been shown: there is nothing to compare with"})
    lifts, differences, told = _intervals(sums)
    compared = np.flatnonzero((sums[1] > 0).all(axis=0))
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
    k, n, c, nn, nc, cc = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = c / n
        spread = (cc - 2 * rate * nc + rate * rate * nn) / n**2 * k / np.maximum(k - 1, 1)
        variance = np.maximum(spread, rate * (1 - rate) / n)  # never less than clicks of people who know no pairs
        freedom = np.maximum(n * n / nn - 1, 1)  # of pairs as if all were shown alike
        told = (k >= MIN_PAIRS).all(axis=0) & (c >= MIN_CLICKS).all(axis=0)
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
