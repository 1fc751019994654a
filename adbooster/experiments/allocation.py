"""Outcomes to shares: Thompson sampling over a hierarchy of click-through rates, and which variants are surely worse.

Rates are Beta-binomial: all -> cohort family of a placement -> place (product, cohort, placement) -> variant. How much the
level above counts (empirical Bayes) follows from how much rates differ within it. Every figure of a place follows from its
own names and outcomes and the levels above, so order and company of the rows change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special

from adbooster.contracts import schema
from adbooster.contracts.naming import digests
from adbooster.experiments.config import Allocation, Experiment, Retirement
from adbooster.experiments.groups import codes, parents
from adbooster.experiments.holdout import positions
from adbooster.experiments.outcomes import of_creatives
from adbooster.experiments.robots import human_clicks

VARIANTS = pa.schema(
    [(n, pa.string()) for n in ("product_id", "cohort_id", "family", "placement", "creative_id")]
    + [("margin", pa.float32())]
)
RETIREMENTS = pa.schema(
    [(n, pa.string()) for n in ("creative_id", "product_id", "cohort_id", "placement", "family", "best_id")]
    + [(n, pa.float64()) for n in ("ctr", "best_ctr", "probability", "lost_clicks")]
    + [("impressions", pa.int64()), ("clicks", pa.int64())]
)
_SUPPORT = 2.0  # standard errors below which the margin says nothing of clicks
_MOST_BY_MARGIN = 1.0  # of a prior's log rate
_RARE = 1e-6
_POOL = 1 << 20  # random numbers that all draws are taken from
_CELLS = 1 << 17  # draws at once: what a processor's cache holds


class Margin(NamedTuple):
    """By how much log rates rise with the CLIP margin within a place."""

    slope: float
    """as used; 0 where outcomes do not support any"""
    found: float
    error: float
    """standard error of `found`; infinite where nothing can be told"""


@dataclass(frozen=True)
class Posterior:
    """What is known of the rate of every variant; arrays are [variants], in the order of `variants`."""

    variants: pa.Table
    """VARIANTS"""
    place: np.ndarray
    """number of its place"""
    clicks: np.ndarray
    """a of Beta(a, b), prior included, old outcomes discounted"""
    misses: np.ndarray
    """b of Beta(a, b)"""
    shown: np.ndarray
    """impressions, discounted"""
    impressions: np.ndarray
    counted: np.ndarray
    """clicks without those of robots"""
    margin: Margin
    strength: float
    """impressions as which a place's rate counts in a variant's"""

    @property
    def ctr(self) -> np.ndarray:
        return self.clicks / (self.clicks + self.misses)


def posterior(outcomes: pa.Table, variants: pa.Table, settings: Allocation, day: date) -> Posterior:
    """The rates of variants on a day.

    outcomes  rows of schema.OUTCOMES; originals are left out, those of former variants teach their place
    variants  VARIANTS, each creative once; a null margin is that of its place
    """
    outcomes, clicks, weight = _counted(outcomes, settings, day)
    names = [f.name for f in VARIANTS]
    rows = pa.concat_tables([t.select(names).cast(VARIANTS) for t in (variants, outcomes)]).combine_chunks()
    leaf = codes(rows["product_id"], rows["cohort_id"], rows["placement"], rows["creative_id"])
    place = codes(rows["product_id"], rows["cohort_id"], rows["placement"])
    family = codes(rows["family"], rows["placement"])
    k, ours = variants.num_rows, leaf[: variants.num_rows]
    raw = outcomes["impressions"].to_numpy()
    leaves = int(leaf.max(initial=-1)) + 1
    n, c = np.bincount(leaf[k:], raw * weight, leaves), np.bincount(leaf[k:], clicks * weight, leaves)
    place_of, family_of = parents(leaf, place), parents(place, family)
    n_place, c_place = np.bincount(place_of, n), np.bincount(place_of, c)
    n_family, c_family = np.bincount(family_of, n_place), np.bincount(family_of, c_place)
    start = np.full(len(n_family), (c.sum() + 0.5) / (n.sum() + 50))
    families, _ = _level(n_family, c_family, np.zeros(len(n_family), np.int64), start, settings)
    places, _ = _level(n_place, c_place, family_of, families[family_of], settings)
    margins = _centred(_mean_margins(rows["margin"], leaf, leaves), n, place_of)
    strength = _strength(n, c, place_of, places[place_of], settings)
    slope = _slope(n, c, places[place_of], margins, strength)
    prior = np.minimum(
        places[place_of] * np.exp(np.clip(slope.slope * margins, -_MOST_BY_MARGIN, _MOST_BY_MARGIN)), 0.5
    )
    return Posterior(
        variants=variants,
        place=place[:k],
        clicks=(strength * prior + c)[ours],
        misses=(strength * (1 - prior) + n - c)[ours],
        shown=n[ours],
        impressions=np.bincount(leaf[k:], raw, leaves)[ours].astype(np.int64),
        counted=np.bincount(leaf[k:], clicks, leaves)[ours].astype(np.int64),
        margin=slope,
        strength=strength,
    )


def _counted(outcomes: pa.Table, settings: Allocation, day: date) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Outcomes of creatives that were shown to people, their clicks, and what each row counts (0-1).

    A row that robots clicked is left out: what is known of it says nothing of the variant.
    """
    outcomes = of_creatives(outcomes.filter(pc.greater(outcomes["impressions"], 0)))
    clicks = human_clicks(outcomes, settings.max_ctr_factor)
    people = clicks == outcomes["clicks"].to_numpy()
    outcomes, clicks = outcomes.filter(pa.array(people)), clicks[people]
    age = (np.datetime64(day) - outcomes["day"].to_numpy().astype("datetime64[D]")).astype(np.float64)
    return outcomes, clicks, 0.5 ** (np.maximum(age, 0) / settings.half_life_days)


def _level(
    n: np.ndarray, c: np.ndarray, parent: np.ndarray, prior: np.ndarray, settings: Allocation
) -> tuple[np.ndarray, float]:
    """Rates of the groups of a level, shrunk to those of the level above (`prior`), and the strength of that."""
    strength = _strength(n, c, parent, prior, settings)
    return (c + strength * prior) / (n + strength), strength


def _strength(n: np.ndarray, c: np.ndarray, parent: np.ndarray, prior: np.ndarray, settings: Allocation) -> float:
    """Impressions as which the level above counts: 1 / rho - 1 of a Beta-binomial.

    The squared distances of counts from their parent's rate, less what chance alone makes of them, are regressed on what
    they would be for rho = 1 (Kleinman, 1973), together with the setting's rho as a prior that is wrong by its own size. The
    mean of what lies above 0 of that is taken, so that no level counts for ever.
    """
    expected = 1 / (1 + settings.prior_impressions)
    total = np.bincount(parent, n)[parent]
    some = (n > 0) & (total > n)
    if not some.any():
        return settings.prior_impressions
    share = n[some] / total[some]
    shares = np.bincount(parent[some], share**2, int(parent.max()) + 1)[parent[some]]
    rate = np.bincount(parent, c)[parent][some] / total[some]
    unit = prior[some] * (1 - prior[some])
    chance = n[some] * unit * (1 - share)
    at_one = n[some] ** 2 * unit * (1 - 2 * share + shares)
    beyond = (c[some] - n[some] * rate) ** 2 - chance
    precision = 1 / (2 * (chance + at_one * expected) ** 2)
    known = float((precision * at_one**2).sum()) + 1 / expected**2
    rho, error = (float((precision * at_one * beyond).sum()) + 1 / expected) / known, known**-0.5
    above = rho + error * math.exp(
        -0.5 * (rho / error) ** 2 - 0.5 * math.log(2 * math.pi) - special.log_ndtr(rho / error)
    )
    return 1 / min(max(above, _RARE), 0.5) - 1


def _mean_margins(margin: pa.ChunkedArray, leaf: np.ndarray, leaves: int) -> np.ndarray:
    """The margin of each creative; NaN where no row has one (float64 [leaves])."""
    values = margin.to_numpy().astype(np.float64)
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.bincount(leaf[present], values[present], leaves) / np.bincount(leaf[present], minlength=leaves)


def _centred(margins: np.ndarray, n: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Margins less the mean of their place, by impressions (and 1 each, for places without any); 0 where there is none."""
    known = np.isfinite(margins)
    weight, values = np.where(known, n + 1, 0), np.where(known, margins, 0)
    mean = np.bincount(place, weight * values) / np.maximum(np.bincount(place, weight), 1)
    return np.where(known, values - mean[place], 0)


def _slope(n: np.ndarray, c: np.ndarray, rate: np.ndarray, margins: np.ndarray, strength: float) -> Margin:
    """Quasi-Poisson regression of clicks on margins within places, shrunk to 0 where it is not supported."""
    weight = 1 / (1 + n / (1 + strength))  # clicks of one variant are alike
    spread = float(np.sqrt(np.average(margins**2, weights=n))) if n.sum() else 0.0
    if not spread > 0:
        return Margin(0.0, 0.0, math.inf)
    found, most, information = 0.0, _MOST_BY_MARGIN / spread, 0.0
    for _ in range(8):
        expected = n * rate * np.exp(np.clip(found * margins, -2, 2))
        information = float((weight * margins**2 * expected).sum())
        if not information > 0:
            return Margin(0.0, 0.0, math.inf)
        found = float(np.clip(found + (weight * margins * (c - expected)).sum() / information, -most, most))
    error = information**-0.5
    kept = max(0.0, 1 - (_SUPPORT * error / found) ** 2) if found else 0.0
    return Margin(found * kept, found, error)


def allocate(outcomes: pa.Table, variants: pa.Table, previous: pa.Table, settings: Allocation, day: date) -> pa.Table:
    """The shares of all variants, schema.ALLOCATIONS of level `variant` without run_id.

    outcomes, variants, day  as of `posterior`
    previous                 schema.ALLOCATIONS that hold until now; a place that is new starts from even shares
    """
    return shares(posterior(outcomes, variants, settings, day), previous, settings)


def shares(rates: Posterior, previous: pa.Table, settings: Allocation) -> pa.Table:
    """As `allocate`, from the posterior."""
    variants = rates.variants
    key = [variants[n].combine_chunks() for n in ("product_id", "cohort_id", "placement", "creative_id")]
    ids = digests("variant", *key)
    held = previous.filter(pc.equal(previous["level"], "variant"))
    weight = _weights(rates.clicks, rates.misses, rates.place, ids, held, settings)
    columns = {n: variants[n] for n in ("product_id", "cohort_id", "placement", "creative_id", "family")}
    columns |= _figures(rates.clicks, rates.misses, rates.impressions, rates.counted)
    return _rows("variant", ids, weight, columns)


def allocate_arms(
    outcomes: pa.Table,
    families: Sequence[str],
    experiments: Sequence[Experiment],
    previous: pa.Table,
    settings: Allocation,
    day: date,
) -> pa.Table:
    """The shares of the arms of each experiment in each of its families, schema.ALLOCATIONS of level `arm` without run_id.

    families  of all cohorts; an experiment that names none runs in these
    previous  as of `allocate`; arms that are new start from even shares

    An ended experiment gives all to the arm that it ended on. What was divided among arms are pairs, so clicks count less
    the more rates differ by pair (the design effect of Kish, 1965).
    """
    outcomes, clicks, weight = _counted(outcomes, settings, day)
    parts = [schema.ALLOCATIONS.empty_table()]
    held = previous.filter(pc.equal(previous["level"], "arm"))
    for experiment in experiments:
        of_experiment = pc.extract_regex(outcomes["arm"], rf"(?:^|,){experiment.name}=(?P<arm>[a-z0-9_-]+)(?:,|$)")
        inside = of_experiment.is_valid().to_numpy()
        rows = outcomes.append_column("of", pc.struct_field(of_experiment, "arm")).filter(pa.array(inside))
        cells = pa.Table.from_pylist(
            [
                {"experiment": experiment.name, "family": family, "arm": arm.name}
                for family in sorted(experiment.families or set(families))
                for arm in experiment.arms
            ],
            pa.schema([(n, pa.string()) for n in ("experiment", "family", "arm")]),
        )
        if cells.num_rows:
            parts.append(_arms(experiment, cells, rows, clicks[inside], weight[inside], held, settings))
    return pa.concat_tables(parts)


def _arms(
    experiment: Experiment,
    cells: pa.Table,
    rows: pa.Table,
    clicks: np.ndarray,
    weight: np.ndarray,
    held: pa.Table,
    settings: Allocation,
) -> pa.Table:
    """The shares of one experiment's arms; `cells` are its families and arms, `rows` its outcomes with their arm as `of`."""
    k = cells.num_rows
    family = pa.concat_arrays([cells["family"].combine_chunks(), rows["family"].combine_chunks()])
    arm = pa.concat_arrays([cells["arm"].combine_chunks(), rows["of"].combine_chunks()])
    leaf, group = codes(family, arm), codes(family)
    leaves, ours, at = int(leaf.max()) + 1, leaf[:k], leaf[k:]
    raw = rows["impressions"].to_numpy()
    effect = _design_effect(raw * weight, clicks * weight, at, codes(rows["product_id"], rows["cohort_id"], rows["of"]))
    n, c = np.bincount(at, raw * weight, leaves) / effect, np.bincount(at, clicks * weight, leaves) / effect
    parent = parents(leaf, group)
    start = np.full(int(group.max()) + 1, (c.sum() + 0.5) / (n.sum() + 50))
    total, hits = np.bincount(parent, n), np.bincount(parent, c)
    family_rates, _ = _level(total, hits, np.zeros(len(total), np.int64), start, settings)
    strength = _strength(n, c, parent, family_rates[parent], settings)
    a = (strength * family_rates[parent] + c)[ours]
    b = (strength * (1 - family_rates[parent]) + n - c)[ours]
    ids = digests("arm", *(cells[name].combine_chunks() for name in cells.column_names))
    if experiment.ended:
        share = pc.equal(cells["arm"], experiment.ended).to_numpy().astype(np.float64)
    else:
        share = _weights(a, b, group[:k], ids, held, settings)
    impressions = np.bincount(at, raw, leaves)[ours].astype(np.int64)
    counted = np.bincount(at, clicks, leaves)[ours].astype(np.int64)
    return _rows("arm", ids, share, {n: cells[n] for n in cells.column_names} | _figures(a, b, impressions, counted))


def _design_effect(n: np.ndarray, c: np.ndarray, cell: np.ndarray, pair: np.ndarray) -> float:
    """By how much rates of cells vary more than single clicks would make them, as pairs differ; 1 or more."""
    if not len(n):
        return 1.0
    of_pair = np.unique(pair * (int(cell.max()) + 1) + cell, return_inverse=True)[1]
    n_pair, c_pair, cell_of = np.bincount(of_pair, n), np.bincount(of_pair, c), parents(of_pair, cell)
    total, count = np.bincount(cell_of, n_pair), np.bincount(cell_of)
    rate = np.bincount(cell_of, c_pair) / np.maximum(total, _RARE)
    spread = np.bincount(cell_of, (c_pair - n_pair * rate[cell_of]) ** 2) * count / np.maximum(count - 1, 1)
    alone = total * rate * (1 - rate)
    return max(1.0, float(spread[count > 1].sum() / max(alone[count > 1].sum(), _RARE)))


def _figures(a: np.ndarray, b: np.ndarray, impressions: np.ndarray, clicks: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "impressions": impressions,
        "clicks": clicks,
        "ctr": a / (a + b),
        "ctr_low": special.betaincinv(a, b, 0.025),
        "ctr_high": special.betaincinv(a, b, 0.975),
    }


def _rows(level: str, ids: pa.Array, weight: np.ndarray, columns: dict) -> pa.Table:
    level_column = pa.array([level] * len(ids), pa.string())
    table = pa.table({"allocation_id": ids, "level": level_column, "weight": weight, **columns})
    wanted = pa.schema([f for f in schema.ALLOCATIONS if f.name in table.column_names])
    return schema.fill(table.select(wanted.names).cast(wanted), schema.ALLOCATIONS).sort_by("allocation_id")


def _weights(
    a: np.ndarray, b: np.ndarray, group: np.ndarray, ids: pa.Array, held: pa.Table, settings: Allocation
) -> np.ndarray:
    """Shares within groups: probability of being the best, the floor, and no faster than `max_shift` from what holds."""
    if not len(a):
        return np.zeros(0)
    group = np.unique(group, return_inverse=True)[1]
    members = np.bincount(group)[group]
    target = (1 - settings.floor) * _best(a, b, group, ids, settings) + settings.floor / members
    before = _before(group, ids, held)
    shift = np.zeros(len(members))
    np.maximum.at(shift, group, np.abs(target - before))
    pace = np.minimum(1, settings.max_shift / np.maximum(shift[group], _RARE))
    moved = before + pace * (target - before)
    above = np.maximum(moved - settings.floor / members, 0)
    total = np.bincount(group, above)[group]
    even = 1 / members
    return settings.floor / members + (1 - settings.floor) * np.where(total > 0, above / np.maximum(total, 1e-12), even)


def _before(group: np.ndarray, ids: pa.Array, held: pa.Table) -> np.ndarray:
    """Shares that hold; a new member has an even share, and the others of its group what is left, as they had it."""
    at = pc.index_in(ids, held["allocation_id"].combine_chunks())
    old = at.is_valid().to_numpy(zero_copy_only=False)
    known = np.zeros(len(group))
    known[old] = held["weight"].to_numpy()[at.drop_null().to_numpy()] if old.any() else 0
    members = np.bincount(group)[group]
    of_old, total = np.bincount(group, old)[group], np.bincount(group, known)[group]
    return np.where(old & (total > 0), known / np.maximum(total, 1e-12) * of_old / members, 1 / members)


def _best(a: np.ndarray, b: np.ndarray, group: np.ndarray, ids: pa.Array, settings: Allocation) -> np.ndarray:
    """Probability of each rate Beta(a, b) of being the largest of its group, by draws.

    A draw is a gamma's with the Beta's mean and variance (rates are small), by Wilson and Hilferty (1931) at shape + 1 and
    times U^(1/shape) (Marsaglia & Tsang, 2000), as a logarithm. Its random numbers are a stretch of one pool, from where the
    name of the row says.
    """
    count = min(settings.draws, _POOL // 4)
    normal, exponential = (np.lib.stride_tricks.sliding_window_view(pool, count) for pool in _pool(settings.seed))
    starts = [(positions(ids, ids, kind) * (_POOL - count)).astype(np.int64) for kind in ("normal", "exponential")]
    shape = a * (a + b + 1) / b
    level = np.log(a / (a + b) / shape * (shape + 1)).astype(np.float32)[:, None]
    root = (1 / (3 * np.sqrt(shape + 1))).astype(np.float32)[:, None]
    boost = (1 / shape).astype(np.float32)[:, None]

    def logarithms(rows: np.ndarray) -> np.ndarray:
        """Of the draws, float32 [rows,draws]."""
        draw = normal[starts[0][rows]] * root[rows]
        draw += 1 - root[rows] ** 2
        np.log(np.maximum(draw, 1e-9, out=draw), out=draw)
        draw *= 3
        draw += level[rows]
        draw -= exponential[starts[1][rows]] * boost[rows]
        return draw

    out = np.ones(len(a))
    order, members = np.argsort(group, kind="stable"), np.bincount(group)
    for size in np.unique(members[members > 1]):  # groups of one size are a block
        some = order[members[group[order]] == size].reshape(-1, size)
        step = max(1, _CELLS // (size * count))
        for rows in (some[i : i + step] for i in range(0, len(some), step)):
            draws = logarithms(rows.ravel()).reshape(len(rows), size, count)
            wins = (draws == draws.max(axis=1, keepdims=True)).sum(axis=2)
            out[rows] = wins / wins.sum(axis=1, keepdims=True)
    return out


@lru_cache(maxsize=2)
def _pool(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal and exponential numbers, float32 [_POOL] each."""
    random = np.random.default_rng(seed)
    return random.standard_normal(_POOL, np.float32), random.standard_exponential(_POOL, np.float32)


def retirements(rates: Posterior, settings: Retirement, spared: pa.Array | None = None) -> pa.Table:
    """Variants that are surely worse than the one of their place with the highest rate (RETIREMENTS), worst loss first.

    spared  creative ids that stay whatever outcomes say

    A place never loses its best, and at most `settings.most` variants go together. `lost_clicks` are those that the best
    would have had more on the same impressions, old ones discounted.
    """
    a, b, ctr = rates.clicks, rates.misses, rates.ctr
    if not settings.most or not len(a):
        return RETIREMENTS.empty_table()
    ids = rates.variants["creative_id"].combine_chunks()
    order = np.lexsort((ids.to_numpy(zero_copy_only=False).astype(str), -ctr, rates.place))
    leads = order[np.r_[True, np.diff(rates.place[order]) > 0]]
    best = np.zeros(int(rates.place.max()) + 1, np.int64)
    best[rates.place[leads]] = leads
    best = best[rates.place]
    shape, mean = a * (a + b + 1) / b, ctr
    speed = shape / mean  # gamma: P(X < Y) is a Beta's distribution function
    worse = special.betainc(shape, shape[best], speed / (speed + speed[best]))
    lost = (ctr[best] - ctr) * rates.shown
    sure = (worse >= settings.probability) & (rates.impressions >= settings.min_impressions)
    sure &= best != np.arange(len(a))
    if spared is not None:
        sure &= ~pc.is_in(ids, spared).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(sure)
    rows = rows[np.lexsort((ids.take(pa.array(rows)).to_numpy(zero_copy_only=False).astype(str), -lost[rows]))]
    rows = rows[: settings.most]
    names = ("creative_id", "product_id", "cohort_id", "placement", "family")
    columns = {n: rates.variants[n].take(pa.array(rows)) for n in names}
    columns["best_id"] = ids.take(pa.array(best[rows]))
    figures = {"ctr": ctr, "best_ctr": ctr[best], "probability": worse, "lost_clicks": lost}
    figures |= {"impressions": rates.impressions, "clicks": rates.counted}
    columns |= {n: values[rows] for n, values in figures.items()}
    return pa.table({n: columns[n] for n in RETIREMENTS.names}).cast(RETIREMENTS)
