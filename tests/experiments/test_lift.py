from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adbooster.contracts import schema
from adbooster.experiments.holdout import positions
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
    later = lift(rows, max_ctr_factor=1000).together.path[4].lift
    assert early.path[-1].lift.model_dump() == pytest.approx(later.model_dump())


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


def seasons(shares, rates, salt=("", ""), per=8):
    """Two times of `per` days in which other shares of the same pairs are held out and clicks are `rates`; no lift."""
    random, rows = np.random.default_rng(0), []
    names = np.array([(f"P{p}", f"c{c}") for p in range(40) for c in range(9)])
    for time, (share, rate) in enumerate(zip(shares, rates, strict=True)):
        original = positions(pa.array(names[:, 0]), pa.array(names[:, 1]), salt[time]) < share
        for day in range(per):
            shown = random.poisson(400, len(names))
            rows.append(
                outcomes(
                    creative_id=[f"{p}{c}{o}" for (p, c), o in zip(names, original, strict=True)],
                    product_id=names[:, 0],
                    cohort_id=names[:, 1],
                    family=["f"] * len(names),
                    control=original,
                    impressions=shown,
                    clicks=random.binomial(shown, rate),
                    day=[FIRST + timedelta(time * per + day)] * len(names),
                )
            )
    return pa.concat_tables(rows)


@pytest.mark.parametrize("salt", [("", ""), ("a", "b")])
def test_a_share_of_held_out_pairs_that_changes_is_no_lift(salt):
    """December with 3 % clicks and 30 % held out, January with 1 % and 5 %: both sides count a day alike."""
    found = lift(seasons((0.3, 0.05), (0.03, 0.01), salt)).together
    assert found.lift.mean == pytest.approx(0, abs=0.06)
    assert found.lift.low < 0 < found.lift.high


def test_a_pair_counts_since_it_is_on_its_side_and_a_day_where_both_sides_were_shown():
    rows = seasons((0.3, 0.05), (0.03, 0.03), per=1)
    sides = rows.group_by(["product_id", "cohort_id"]).aggregate([("control", "min"), ("control", "max")])
    moved = pc.sum(pc.not_equal(sides["control_min"], sides["control_max"])).as_py()
    found = lift(rows).together
    assert moved > 50
    assert (found.pairs + found.control_pairs, found.control_pairs) == (360, pc.sum(sides["control_min"]).as_py())
    later = rows.filter(pc.and_(pc.equal(rows["day"], FIRST + timedelta(1)), pc.equal(rows["control"], False)))
    first = rows.filter(pc.equal(rows["day"], FIRST))
    stays = pc.is_in(later["creative_id"], first["creative_id"].combine_chunks())
    alone = lift(first).together
    more = lift(pa.concat_tables([first, later.filter(stays)])).together
    assert more.lift.model_dump() == pytest.approx(alone.lift.model_dump())
    assert (more.impressions, more.clicks) == (alone.impressions, alone.clicks)
    apart = lift(pa.concat_tables([first.filter(first["control"]), later.filter(stays)])).together
    assert apart.note.startswith("creatives and originals of held-out pairs have not been shown on one day")
    assert apart.impressions > 0 < apart.control_impressions
