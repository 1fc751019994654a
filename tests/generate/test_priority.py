"""Values of requests: the classes and their order, every factor worked out by hand, parts that add up, a million rows."""

import io
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.generate import priority, value
from adbooster.generate.config import Value
from adbooster.storage import buckets, tables
from tests.conftest import row

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def requests(*pairs, **columns):
    rows = [
        row(schema.REQUESTS, request_id=f"{p}{c}", product_id=p, cohort_id=c, placement="square", round=0, **columns)
        for p, c in pairs
    ]
    return pa.Table.from_pylist(rows, schema.REQUESTS)


def live(run_id="r1", **margins):
    rows = [
        row(
            schema.CREATIVES,
            product_id=name[0],
            cohort_id=name[1:],
            placement="square",
            rank=0,
            margin=m,
            run_id=run_id,
        )
        for name, m in margins.items()
    ]
    return pa.Table.from_pylist(rows, schema.CREATIVES)


def facts(asked, there, weights=(), sizes=(), published=(), **settings):
    kinds = pa.timestamp("us", tz="UTC")
    known = value.Facts(
        settings=Value(**settings),
        weights=pa.table({"product_id": pa.array([*dict(weights)], pa.string()), "weight": [*dict(weights).values()]}),
        sizes=pa.table(
            {
                "cohort_id": pa.array([*dict(sizes)], pa.string()),
                "size": pa.array([*dict(sizes).values()], pa.int64()),
            }
        ),
        commits=pa.table(
            {
                "run_id": pa.array([*dict(published)], pa.string()),
                "published_at": pa.array([*dict(published).values()], kinds),
            }
        ),
        now=NOW,
    )
    known.margins.add(there, asked)
    return known


def ordered(asked, there, **known):
    """The names in the order that they would be painted in, in waves of two."""
    known = facts(asked, there, **known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adbooster.generate.priority.WAVE_ROWS", 2)
        return [name for wave in priority.waves(night(asked, there, known)) for name in wave["request_id"].to_pylist()]


def night(asked, there, known, parts=1):
    """What ordering by value needs of a NightPlan."""
    divided = buckets.parts(parts, most=1)

    def of(rows, part, columns=None):
        found = rows.filter(part.has(buckets.numbers(rows["product_id"])))
        return found.select(columns) if columns else found

    return SimpleNamespace(
        parts=divided,
        staged=asked.slice(0, 0),
        facts=known,
        missing=lambda part, columns=None: of(asked, part, columns),
        live=SimpleNamespace(read=lambda part, columns: of(there, part, columns)),
    )


ASKED = requests(("a", "1"), ("a", "2"), ("a", "3"), ("a", "4"), ("a", "5"), ("b", "1"), ("c", "1"))
THERE = live(a1=0.4, a2=0.1, a3=0.3, a4=0.2)


def test_new_products_come_first_then_low_margins_then_the_rest():
    assert ordered(ASKED, THERE) == ["b1", "c1", "a2", "a4", "a5", "a3", "a1"]
    values = value.valued(ASKED, THERE, facts(ASKED, THERE))
    classes = dict(zip(*(values[n].to_pylist() for n in ("request_id", "value_class")), strict=True))
    assert classes == {
        **dict.fromkeys(["b1", "c1"], "new_product"),
        **dict.fromkeys(["a2", "a4"], "low_margin"),
        "a5": "new_place",
        **dict.fromkeys(["a3", "a1"], "high_margin"),
    }


def test_where_nothing_is_live_the_order_stays():
    asked = requests(("b", "2"), ("a", "1"), ("c", "1"))
    assert ordered(asked, live()) == asked["request_id"].to_pylist()


def test_the_value_is_the_product_of_factors_that_a_person_can_check():
    asked = requests(("a", "1"), ("b", "2"), category="shoes", family="sports")
    there = live(a1=0.1, a2=0.5)
    asked_before = requests(("a", "1"), ("a", "2"), category="shoes", family="sports")
    known = facts(
        asked,
        there,
        weights={"a": 4.0},
        sizes={"1": 30, "2": 10},
        published={"r1": NOW - timedelta(days=60)},
        product_weight=0.5,
        cohort_size=2.0,
        age=1.0,
    )
    known.margins.add(live(a2=0.5), asked_before)
    a, b = value.valued(asked, there, known).to_pylist()
    # margins 0.1 and 0.5, twice: mean 0.3667, standard deviation 0.1886, all of one family and category
    mean = (0.1 + 0.5 + 0.5) / 3
    spread = ((0.01 + 0.25 + 0.25) / 3 - mean**2) ** 0.5
    g = (mean - 0.1) / spread
    assert a["expected_margin"] == pytest.approx(mean, abs=1e-6)
    assert (a["product_weight"], a["cohort_users"], a["live_days"]) == (4.0, 30.0, 60.0)
    assert (a["weight_factor"], a["size_factor"], a["age_factor"]) == pytest.approx((2.0, 1.5**2, 3.0))
    assert a["gain_factor"] == pytest.approx(10 ** (g / (1 + g)), rel=1e-5)
    assert a["value"] == pytest.approx(2.0 * 2.25 * 3.0 * a["gain_factor"])
    g = mean / spread
    assert (b["margin"], b["live_days"], b["product_weight"]) == (None, None, None)
    assert (b["weight_factor"], b["size_factor"], b["age_factor"]) == pytest.approx((1.0, 0.25, 1.0))
    assert b["gain_factor"] == pytest.approx(10 ** (g / (1 + g)), rel=1e-5)


def test_what_is_expected_is_the_mean_of_like_creatives_shrunk_towards_all():
    shoes = requests(("a", "1"), ("a", "2"), category="shoes", family="sports")
    hats = requests(("b", "1"), category="hats", family="sports")
    margins = value.Margins()
    margins.add(live(a1=0.5, a2=0.3), shoes)
    margins.add(live(b1=0.1), hats)
    asked = pa.concat_tables([shoes, hats, requests(("c", "1"), category="bags", family="events")])
    mean = 0.3
    found = margins.expected(asked["family"], asked["category"], prior=2)
    both = (0.8 + 2 * mean) / 4
    assert found == pytest.approx([both, both, (0.1 + 2 * mean) / 3, mean])


def test_parts_add_up_to_the_whole():
    """In any parts of the catalog, cut by product, the values are those of all at once; a live row of nobody asked is left out."""
    rng = np.random.default_rng(3)
    products = "abcdefgh"
    kinds = dict(zip(products, "xxyyzzxy", strict=True))
    asked = pa.concat_tables([requests(*((p, c) for c in "1234"), category=kinds[p], family="f") for p in products])
    there = live(**{f"{p}{c}": float(rng.random()) for p in products for c in "12"}, z1=9.0)
    whole = facts(asked, there)
    parts = facts(asked.slice(0, 0), there.slice(0, 0))
    for some in ("abc", "def", "gh"):
        mine = [t.filter(pc.is_in(t["product_id"], pa.array(list(some)))) for t in (asked, there)]
        parts.margins.add(mine[1], mine[0])
    split = []
    for some in ("abc", "def", "gh"):
        mine = [t.filter(pc.is_in(t["product_id"], pa.array(list(some)))) for t in (asked, there)]
        split += value.valued(*mine, parts)["value"].to_pylist()
    assert split == pytest.approx(value.valued(asked, there, whole)["value"].to_pylist())
    assert whole.margins.mean < 1


def test_weights_and_cohorts_order_within_a_class_and_across_where_classes_do_not_come_first():
    weights, sizes = {"b": 0.5, "c": 2.0}, {"1": 100, "5": 100, "4": 700}
    assert ordered(ASKED, THERE, weights=weights, sizes=sizes)[:4] == ["c1", "b1", "a4", "a2"]
    assert ordered(ASKED, THERE, weights={"a": 1000.0}, classes_first=False)[-2:] == ["b1", "c1"]
    off = dict(product_weight=0, cohort_size=0, gain=0, classes_first=False)
    assert ordered(ASKED, THERE, weights=weights, sizes=sizes, **off) == ASKED["request_id"].to_pylist()


def test_what_has_been_live_longer_comes_first_where_age_counts():
    asked = requests(("a", "1"), ("b", "1"), ("c", "1"))
    there = pa.concat_tables([live("new", a1=0.2), live("old", b1=0.2), live("before the log", c1=0.2)])
    published = {"new": NOW - timedelta(days=1), "old": NOW - timedelta(days=40)}
    assert ordered(asked, there, published=published, age=1.0) == ["b1", "c1", "a1"]
    assert ordered(asked, there, published=published) == ["a1", "b1", "c1"]
    days = value.valued(asked, there, facts(asked, there, published=published, age=1.0))["live_days"].to_pylist()
    assert days == [1.0, 40.0, 40.0]


def test_what_is_left_is_counted_by_class_and_named_in_a_file_best_first(root):
    asked, there = requests(("a", "1"), ("b", "1"), ("b", "2")), live(a1=0.5)
    known = facts(asked, there, sizes={"1": 1, "2": 3})
    told = priority.write_left(root, "r", night(asked, there, known, parts=4), asked.slice(0, 0), "deadline")
    assert told["left_uri"] == f"{root.uri}/runs/r/left.parquet"
    assert told["left_by_value"] == {"new_product": 2, "low_margin": 1}
    (apart,) = priority.waves(night(asked, there, known, parts=4))
    assert apart["request_id"].to_pylist() == ["b2", "b1", "a1"]
    rows = pap.read_table(io.BytesIO(root.read("runs/r/left.parquet")))
    assert rows.schema.remove_metadata() == value.VALUED
    assert rows["request_id"].to_pylist() == ["b2", "b1", "a1"]
    assert told["left_most_valuable"] == rows.to_pylist()
    assert told["painted_most_valuable"] == []
    told = priority.write_left(root, "r", night(asked, there, known), asked.slice(1, 1), "deadline")
    assert [row["request_id"] for row in told["left_most_valuable"]] == ["b2", "a1"]
    assert [row["request_id"] for row in told["painted_most_valuable"]] == ["b1"]


def test_the_facts_of_a_root_are_its_cohorts_and_its_commits(root):
    cohorts = [row(schema.COHORTS, cohort_id=c, size=n, interests=[]) for c, n in (("1", 5), ("2", 0))]
    tables.merge(root, "cohorts", pa.Table.from_pylist(cohorts, schema.COHORTS), "cohort_id", None, {})
    rows = pa.Table.from_pylist([row(schema.CREATIVES, creative_id="x", run_id="r1")], schema.CREATIVES)
    tables.merge(root, "creatives", rows, "creative_id", None, {"run_id": "r1"})
    known = value.read_facts(root, Value(age=1.0))
    assert known.sizes.to_pylist() == [{"cohort_id": "1", "size": 5}, {"cohort_id": "2", "size": 0}]
    assert known.commits["run_id"].to_pylist() == ["r1"]
    assert abs((known.now - known.commits["published_at"][0].as_py()).total_seconds()) < 300
    assert known.weights.num_rows == 0


def test_a_million_requests_are_valued_in_seconds():
    """About a second on an idle core; a loop over the rows takes ten times that."""
    products, cohorts = 50_000, 20
    of_product = pa.array(np.repeat(np.arange(products), cohorts))
    names = pa.array([f"product-{i}" for i in range(products)])
    kinds = pa.array([f"kind {i % 500}" for i in range(products)])
    of_cohort = pa.array([f"c{i}" for i in range(cohorts)] * products)
    ids = pa.array(range(products * cohorts)).cast(pa.string())
    asked = pa.table(
        {
            "request_id": ids,
            "product_id": names.take(of_product),
            "cohort_id": of_cohort,
            "placement": pa.array(["square"] * len(ids)),
            "category": kinds.take(of_product),
            "family": of_cohort,
        }
    )
    there = asked.select(["product_id", "cohort_id", "placement"])
    there = there.append_column("rank", pa.array(np.zeros(len(ids), np.int32)))
    there = there.append_column("margin", pa.array(np.random.default_rng(0).random(len(ids)), pa.float32()))
    known = facts(asked.slice(0, 0), there.slice(0, 0))
    started = time.process_time()
    known.margins.add(there, asked)
    first = value.order(value.valued(asked, there, known), known.settings)
    assert time.process_time() - started < 8
    assert len(first) == len(ids)
