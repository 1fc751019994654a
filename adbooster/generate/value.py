"""What a request is worth: a product of factors, each of which stands beside it, so that a person can check it.

    value = weight_factor x size_factor x age_factor x gain_factor
    value_class first, unless `value.classes_first` is off

Everything is columns in, columns out, part of a catalog by part: `Facts` are read once, `Margins` are added up over the parts,
and then each part is `valued` alone.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.naming import PLACE, row_keys
from adbooster.generate.config import Value
from adbooster.storage import tables
from adbooster.storage.objects import Root

CLASSES = ("new_product", "low_margin", "new_place", "high_margin")
"""Most valuable first.

new_product  nothing of the product is live
low_margin   the live creative that it would replace has at most the margin that is expected there
new_place    the product is live, but nothing of it for this cohort and placement
high_margin  the others
"""
NAMES = ("request_id", *PLACE)
FIGURES = ("margin", "expected_margin", "product_weight", "cohort_users", "live_days")
FACTORS = ("weight_factor", "size_factor", "age_factor", "gain_factor")
VALUED = pa.schema(
    [(name, pa.string()) for name in (*NAMES, "value_class")]
    + [(name, pa.float64()) for name in ("value", *FIGURES, *FACTORS)]
)
"""A request, its class and value, what they follow from, and the factors.

margin           of the creative that is live in its place; null where none is
expected_margin  of live creatives of the cohort's family and the product's category (Margins.expected)
product_weight   as the feed has it; null where it has none
cohort_users     null where it is not known
live_days        since the creative in its place was published; null as `margin`, or where no commit tells
"""
ASKED = [*NAMES, "category", "family"]  # of requests
LIVE = [*PLACE, "rank", "margin", "run_id"]  # of creatives
LEAST_SPREAD = 0.01  # of margins: below it differences are noise
AGE_DAYS = 30.0  # after which `value.age` 1 doubles a value
Floats = npt.NDArray[np.float64]


class Margins:
    """Margins of live creatives by the cohort's family and the product's category, added up part by part."""

    def __init__(self) -> None:
        self.sums = pa.table(
            {"group": pa.array([], pa.string()), "n": _no(pa.int64()), "total": _no(), "squares": _no()}
        )

    def add(self, live: pa.Table, requests: pa.Table) -> None:
        """Add the best creative of every place of a part.

        live      product_id, cohort_id, rank, margin
        requests  product_id, cohort_id, category, family; what no request's product and cohort are is left out
        """
        best = live.filter(pc.and_(pc.equal(live["rank"], 0), pc.is_valid(live["margin"])))
        of = {"product_id": "category", "cohort_id": "family"}
        facts = {value: _looked_up(best[key], requests[key], requests[value]) for key, value in of.items()}
        known = pc.and_(*(pc.is_in(best[key], value_set=pc.unique(requests[key])) for key in of))
        margin = pc.cast(best["margin"], pa.float64())
        part = pa.table(
            {
                "group": _group(facts["family"], facts["category"]),
                "n": pa.array(np.ones(best.num_rows, np.int64)),
                "total": margin,
                "squares": pc.multiply(margin, margin),
            }
        ).filter(known)
        names = ("n", "total", "squares")
        added = pa.concat_tables([self.sums, part]).group_by("group").aggregate([(name, "sum") for name in names])
        self.sums = added.select(["group", *(f"{name}_sum" for name in names)]).rename_columns(["group", *names])

    @property
    def mean(self) -> float:
        """Of all; 0 where nothing is live."""
        return _sum(self.sums["total"]) / max(_sum(self.sums["n"]), 1)

    @property
    def spread(self) -> float:
        """Standard deviation of all, at least LEAST_SPREAD."""
        variance = _sum(self.sums["squares"]) / max(_sum(self.sums["n"]), 1) - self.mean**2
        return max(variance, 0.0) ** 0.5 if variance > LEAST_SPREAD**2 else LEAST_SPREAD

    def expected(self, families: pa.ChunkedArray, categories: pa.ChunkedArray, prior: float) -> Floats:
        """The mean of each family and category, shrunk towards the mean of all, which counts as `prior` creatives."""
        n, total = (self.sums[name].to_numpy() for name in ("n", "total"))
        means = np.append((total + prior * self.mean) / np.maximum(n + prior, 1e-9), self.mean)
        at = pc.index_in(_group(families, categories), value_set=self.sums["group"].combine_chunks())
        return means[pc.fill_null(at, len(n)).to_numpy()]


@dataclass(frozen=True)
class Facts:
    """What values follow from besides the requests and what is live of them.

    weights  product_id, weight; sizes  cohort_id, size; commits  run_id, published_at: of tables/creatives
    """

    settings: Value
    weights: pa.Table
    sizes: pa.Table
    commits: pa.Table
    now: datetime
    margins: Margins = field(default_factory=Margins)


def read_facts(root: Root, settings: Value) -> Facts:
    """From the tables; without margins, which `facts.margins.add` takes part by part."""
    return Facts(
        settings=settings,
        weights=_weights(root),
        sizes=tables.read(root, "cohorts", ["cohort_id", "size"]),
        commits=_commits(root) if settings.age else _commits(None),
        now=datetime.now(UTC),
    )


def valued(requests: pa.Table, live: pa.Table, facts: Facts) -> pa.Table:
    """What each request is worth (VALUED), in the order of `requests`.

    requests  request_id, product_id, cohort_id, placement, category, family
    live      product_id, cohort_id, placement, rank, margin and, where `value.age` counts, run_id: all that is live of the
              products of `requests`; of several in one place the best counts
    """
    settings, best = facts.settings, live.filter(pc.equal(live["rank"], 0))
    at = pc.index_in(row_keys(requests, PLACE), value_set=row_keys(best, PLACE))
    margin = _floats(best["margin"].take(at))
    replaces = np.isfinite(margin)
    expected = facts.margins.expected(requests["family"], requests["category"], settings.prior)
    known = pc.is_in(requests["product_id"], value_set=pc.unique(best["product_id"])).to_numpy()
    low = replaces & (margin <= expected.astype(np.float32))
    number = np.select([~known, low, ~replaces], [0, 1, 2], 3)
    gain = np.where(replaces, expected - np.nan_to_num(margin), expected) / facts.margins.spread
    weight = _floats(_looked_up(requests["product_id"], facts.weights["product_id"], facts.weights["weight"]))
    users = _floats(_looked_up(requests["cohort_id"], facts.sizes["cohort_id"], facts.sizes["size"]))
    days = _days(best, at, facts) if settings.age else np.full(requests.num_rows, np.nan)
    factors = {
        "weight_factor": np.nan_to_num(weight, nan=1.0) ** settings.product_weight,
        "size_factor": _relative(users, facts.sizes) ** settings.cohort_size,
        "age_factor": (1 + np.nan_to_num(days) / AGE_DAYS) ** settings.age,
        "gain_factor": 10 ** (settings.gain * gain / (1 + np.abs(gain))),
    }
    columns = {name: requests[name] for name in NAMES}
    columns["value_class"] = pa.array(CLASSES).take(pa.array(number))
    columns["value"] = pa.array(np.prod(list(factors.values()), axis=0))
    for name, values in zip(FIGURES, (margin, expected, weight, users, days), strict=True):
        columns[name] = pa.array(values, mask=np.isnan(values))
    return pa.table(columns | {name: pa.array(values) for name, values in factors.items()}).cast(VALUED)


def order(values: pa.Table, settings: Value) -> pa.Array:
    """Where in `values` (VALUED) the most valuable is, the next one...; equals stay in their order."""
    keys = [-values["value"].to_numpy()]
    if settings.classes_first:
        keys.append(pc.index_in(values["value_class"], value_set=pa.array(CLASSES)).to_numpy())
    return pa.array(np.lexsort(keys))


def _weights(root: Root) -> pa.Table:
    """Weights of main samples that have one."""
    rows = tables.read(root, "samples", ["product_id", "role", "weight"])
    rows = rows.filter(pc.and_(pc.equal(rows["role"], "main"), pc.is_valid(rows["weight"])))
    return rows.select(["product_id", "weight"])


def _commits(root: Root | None) -> pa.Table:
    """When each run published first, as far as the table's log reaches."""
    first = {v.run_id: v.time for v in (tables.history(root, "creatives") if root else ()) if v.run_id}
    kinds = pa.string(), pa.timestamp("us", tz="UTC")
    return pa.table(
        {"run_id": pa.array(list(first), kinds[0]), "published_at": pa.array(list(first.values()), kinds[1])}
    )


def _days(best: pa.Table, at: pa.Array, facts: Facts) -> Floats:
    """Days since what is live in each place was published; what is older than the log counts from the log's begin."""
    run_ids = best["run_id"].take(at)
    published = _looked_up(run_ids, facts.commits["run_id"], facts.commits["published_at"])
    published = pc.if_else(pc.is_valid(run_ids), pc.fill_null(published, pc.min(facts.commits["published_at"])), None)
    since = pc.subtract(pa.scalar(facts.now, pa.timestamp("us", tz="UTC")), published)
    return np.maximum(_floats(pc.cast(pc.cast(since, pa.int64()), pa.float64())) / 86_400e6, 0.0)


def _relative(users: Floats, sizes: pa.Table) -> Floats:
    """Each cohort's size over the mean of all cohorts that have one; 1 where it has none."""
    there = _floats(sizes["size"])
    there = there[there > 0]
    mean = there.mean() if len(there) else 1.0
    return np.where(users > 0, users / mean, 1.0)


def _group(families: pa.ChunkedArray, categories: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(pc.fill_null(families, ""), pc.fill_null(categories, ""), "\x1f")


def _looked_up(keys: pa.ChunkedArray, known: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The value of each key, of the first row that has it; null where none has."""
    return values.take(pc.index_in(keys, value_set=known.combine_chunks()))


def _floats(values: pa.ChunkedArray) -> Floats:
    """float64, NaN where null."""
    return pc.fill_null(pc.cast(values, pa.float64()), float("nan")).to_numpy()


def _sum(values: pa.ChunkedArray) -> float:
    return pc.sum(values).as_py() or 0.0


def _no(kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([], kind or pa.float64())
