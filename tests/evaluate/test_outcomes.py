import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.evaluate import outcomes
from adbooster.evaluate.config import Outcomes
from adbooster.experiments.outcomes import COLUMNS
from tests.conftest import row


def creatives(*entries):
    """Live creatives of (creative_id, cohort_id, margin)."""
    rows = [
        row(
            schema.CREATIVES,
            creative_id=name,
            request_id=f"r-{name}",
            product_id=f"p-{name}",
            cohort_id=cohort,
            placement="square",
            sha256="0" * 64,
            rank=0,
            margin=margin,
            fallback=False,
        )
        for name, cohort, margin in entries
    ]
    return pa.Table.from_pylist(rows, schema.CREATIVES)


def counts(*entries):
    """Outcomes of (creative_id, day, impressions, clicks)."""
    rows = [dict(zip(COLUMNS.names, (*entry, 0, None, None), strict=True)) for entry in entries]
    return pa.Table.from_pylist(rows, COLUMNS)


def test_days_are_summed_and_rates_come_with_wilsons_interval():
    live = creatives(("a", "c1", 0.1), ("b", "c1", 0.2))
    table = counts(("a", "2026-11-01", 600, 6), ("a", "2026-11-02", 400, 14), ("b", "2026-11-01", 1000, 40))
    found = outcomes.join(table, live, Outcomes())
    a = found.creatives[0]
    assert (a.days, a.impressions, a.clicks, a.ctr.mean, a.others_ctr) == (2, 1000, 20, 0.02, 0.04)
    assert a.ctr.low == pytest.approx(0.0130, abs=1e-4)
    assert a.ctr.high == pytest.approx(0.0307, abs=1e-4)
    assert found.cohorts["c1"].mean == 0.03


def test_what_is_surely_worse_than_its_cohorts_others_is_retired():
    live = creatives(("bad", "c1", 0.1), ("rare", "c1", 0.1), ("good", "c1", 0.2), ("alone", "c2", 0.1))
    table = counts(
        ("bad", "d", 10_000, 50), ("rare", "d", 100, 0), ("good", "d", 10_000, 300), ("alone", "d", 10_000, 1)
    )
    joined = outcomes.join(table, live, Outcomes())
    found = {c.creative_id: c for c in joined.creatives}
    assert [name for name, c in found.items() if c.retire] == ["bad"]
    assert [m["creative_id"] for m in outcomes.marks(joined)["marks"]] == ["bad"]
    assert found["alone"].others_ctr is None, "nothing to compare it with"


def test_a_creative_that_may_be_as_good_stays():
    live = creatives(("a", "c1", 0.1), ("b", "c1", 0.2))
    table = counts(("a", "d", 1000, 18), ("b", "d", 1000, 30))  # 1.8 % [1.1, 2.8] against 0.7 x 3 %
    assert not any(c.retire for c in outcomes.join(table, live, Outcomes()).creatives)


def test_unknown_broken_and_repeated_rows_are_counted_and_left_out():
    table = counts(
        ("a", "d1", 100, 5),
        ("a", "d1", 100, 5),
        ("gone", "d1", 100, 5),
        ("a", "d2", 10, 11),
        ("a", "d3", -1, 0),
        (None, "d1", 10, 1),
        ("a", "d4", None, 0),
    )
    found = outcomes.join(table, creatives(("a", "c1", 0.1)), Outcomes())
    assert (found.rows, found.live, found.unknown, found.broken, found.duplicates) == (7, 1, 1, 4, 1)
    assert found.unknown_examples == ["gone"]
    assert found.creatives[0].impressions == 100


def test_only_unknown_ids_are_an_empty_report():
    found = outcomes.join(counts(("x", "d", 10, 1)), creatives(("a", "c1", 0.1)), Outcomes())
    assert (found.live, found.creatives, found.margin_correlation) == (0, [], None)
    assert outcomes.figures(found, Outcomes())[-1].value == 0


def test_the_margins_correlation_looks_within_cohorts():
    """Cohort c2 clicks more on everything and has low margins: over all that would look like a negative correlation."""
    entries = [(f"{c}{i}", c, 0.05 * i + (0 if c == "c2" else 1)) for c in ("c1", "c2") for i in range(10)]
    rates = [(name, "d", 10_000, (10 if cohort == "c1" else 300) * (10 + int(name[2:]))) for name, cohort, _ in entries]
    found = outcomes.join(counts(*rates), creatives(*entries), Outcomes()).margin_correlation
    assert found.mean > 0.4
    assert found.low > 0
