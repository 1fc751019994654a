import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.experiments.lift import lift
from adbooster.experiments.robots import human_clicks
from tests.experiments.people import FIRST, month, outcomes

MONTHS = 60


def alarms(months):
    """Of months whether their interval left 0 out on any morning."""
    paths = [[d.lift for d in lift(rows).together.path if d.lift and d.lift.low is not None] for rows in months]
    return [any(not i.low <= 0 <= i.high for i in path) for path in paths]


@pytest.mark.parametrize("world", [{}, {"products": 8, "cohorts": 6, "control": 0.3}, {"control": 0.1, "shown": 3000}])
def test_looking_every_morning_finds_no_lift_where_there_is_none(world):
    """5 % of months at most; 8 of 60 are beyond what 5 % gives in one of a hundred tests."""
    assert sum(alarms(month(seed, **world) for seed in range(MONTHS))) < 8


def test_a_lift_of_thirty_percent_is_found():
    found = [lift(month(seed, lift=0.3, spread=0.15, control=0.3)).together for seed in range(20)]
    assert sum(f.sure for f in found) >= 16
    assert np.mean([f.lift.mean for f in found]) == pytest.approx(0.3, abs=0.05)
    assert all(f.difference.low < 0.03 * 0.3 * 1.1 < f.difference.high for f in found)


def test_clicks_of_one_pair_are_one_observation():
    """Two pairs a side decide nothing, however often they are shown; with as many clicks, a hundred pairs do."""
    few = month(1, products=10, cohorts=2, control=0.5, lift=0.3, shown=100_000)
    assert not lift(few).together.sure
    assert lift(month(1, products=40, cohorts=10, control=0.5, lift=0.3, spread=0.1, shown=5000)).together.sure


def test_few_pairs_get_no_interval_and_it_says_so():
    found = lift(month(1, products=3, cohorts=2, control=0.5)).together
    assert found.lift.low is None
    assert found.note.startswith("no interval below 8 pairs and 10 clicks a side")
    assert not found.sure


def test_without_originals_nothing_is_told():
    found = lift(month(0, control=0)).together
    assert (found.lift, found.path) == (None, [])
    assert found.note == "no original of a held-out pair has been shown: there is nothing to compare with"
    assert lift(schema.OUTCOMES.empty_table()).together.note.startswith("no creative has been shown")


def test_families_add_up_and_a_later_day_changes_no_earlier_one():
    rows = month(3, days=10)
    whole = lift(rows)
    assert sum(f.clicks for f in whole.families) == whole.together.clicks
    assert {f.family for f in whole.families} == {"seasons", "events", "sports"}
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows)))
    assert lift(shuffled).together.path[-1].lift.mean == pytest.approx(whole.together.lift.mean)
    days = rows["day"].to_numpy()
    early = lift(rows.filter(pa.array(days <= np.datetime64(FIRST) + 4)), max_ctr_factor=1000).together
    assert early.path[-1].lift == lift(rows, max_ctr_factor=1000).together.path[4].lift


def test_clicks_of_robots_are_not_counted():
    n = 40
    clicks = np.full(n, 20)
    clicks[3] = 900
    rows = outcomes(
        creative_id=[f"x{i}" for i in range(n)],
        family=["f"] * n,
        impressions=[1000] * n,
        clicks=clicks,
        product_id=["p"] * n,
    )
    counted = human_clicks(rows, 5.0)
    assert counted[3] == pytest.approx(20, abs=1)
    assert (np.delete(counted, 3) == 20).all()
    alone = human_clicks(rows.slice(3, 1), 5.0)
    assert alone[0] <= 900
