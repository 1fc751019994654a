from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.experiments.allocation import (
    VARIANTS,
    allocate,
    allocate_arms,
    posterior,
    retirements,
    shares,
)
from adbooster.experiments.config import Allocation, Arm, Experiment, Retirement
from tests.experiments.people import FIRST, month, outcomes

NONE = schema.ALLOCATIONS.empty_table()
FREE = Allocation(max_shift=1, floor=0.1)


def catalog(places, each, seed=0, spread=0.3, slope=0.0, shown=2000, rate=0.03):
    """(variants, outcomes, true rates) of places with `each` variants."""
    random = np.random.default_rng(seed)
    place, n = np.repeat(np.arange(places), each), places * each
    margin = random.normal(0.05, 0.02, n).astype(np.float32)
    rates = rate * np.exp(random.normal(0, 0.3, places)[place] + random.normal(0, spread, n) + slope * (margin - 0.05))
    impressions = np.full(n, shown)
    columns = {
        "product_id": [f"P{p // 9}" for p in place],
        "cohort_id": [f"c{p % 9}" for p in place],
        "family": [("seasons", "events", "sports")[p % 3] for p in place],
        "placement": ["square"] * n,
        "creative_id": [f"{p:05d}-{i % each}" for i, p in enumerate(place)],
        "margin": margin,
    }
    variants = pa.table({f.name: pa.array(columns[f.name], f.type) for f in VARIANTS}, VARIANTS)
    clicks = random.binomial(impressions, rates)
    return variants, outcomes(**columns, impressions=impressions, clicks=clicks), rates


def weights(table):
    return dict(zip(table["creative_id"].to_pylist(), table["weight"].to_pylist(), strict=True))


def place(clicks, shown=1000, day=FIRST):
    """One place with a variant a count of clicks."""
    n = len(clicks)
    columns = {"product_id": ["P"] * n, "cohort_id": ["c"] * n, "family": ["f"] * n, "placement": ["square"] * n}
    columns |= {"creative_id": [f"v{i}" for i in range(n)], "margin": [0.1] * n}
    variants = pa.table({f.name: pa.array(columns[f.name], f.type) for f in VARIANTS}, VARIANTS)
    return variants, outcomes(**columns, impressions=[shown] * n, clicks=clicks, day=[day] * n)


def test_shares_are_probabilities_with_a_floor_and_the_better_variant_has_more():
    variants, rows, _ = catalog(50, 3)
    table = allocate(rows, variants, NONE, FREE, FIRST)
    schema.check(table, schema.ALLOCATIONS)
    of_place = table.group_by(["product_id", "cohort_id"]).aggregate([("weight", "sum"), ("weight", "min")])
    assert np.allclose(of_place["weight_sum"].to_numpy(), 1, atol=1e-5)
    assert min(of_place["weight_min"].to_pylist()) >= 0.1 / 3 - 1e-6
    found = weights(allocate(*reversed(place([10, 60])), NONE, FREE, FIRST))
    assert found["v1"] > 0.9


def test_shares_are_the_posterior_probability_of_being_the_best():
    """Against draws of the Betas themselves, also where there are next to no clicks."""
    for clicks, shown in (([20, 26, 24], 1000), ([0, 1, 0], 20), ([200, 150, 180], 1000)):
        variants, rows = place(clicks, shown)
        rates = posterior(rows, variants, FREE, FIRST)
        draws = np.random.default_rng(0).beta(rates.clicks, rates.misses, (200_000, 3))
        expected = 0.9 * np.bincount(draws.argmax(axis=1), minlength=3) / len(draws) + 0.1 / 3
        table = shares(rates, NONE, FREE.model_copy(update={"draws": 100_000}))
        found = weights(table)
        assert [found[f"v{i}"] for i in range(3)] == pytest.approx(expected, abs=0.012)


def test_neither_order_nor_company_changes_a_place():
    variants, rows, _ = catalog(30, 3, seed=1)
    settings = Allocation(prior_impressions=100)
    some = allocate(rows, variants, NONE, settings, FIRST)
    order = pa.array(np.random.default_rng(0).permutation(variants.num_rows))
    assert allocate(rows.take(order), variants.take(order), NONE, settings, FIRST).equals(some)
    rates = posterior(rows, variants.slice(0, 6), settings, FIRST)
    alone = weights(shares(rates, NONE, settings))
    assert alone == {name: weights(some)[name] for name in alone}
    other = shares(rates, NONE, settings.model_copy(update={"seed": 1}))
    assert weights(other) != alone
    assert weights(other) == pytest.approx(alone, abs=0.05)


def test_a_share_moves_no_faster_than_it_may():
    variants, rows = place([30, 90])
    settings = Allocation(max_shift=0.2)
    first = allocate(rows, variants, NONE, settings, FIRST)
    assert weights(first)["v1"] == pytest.approx(0.7)
    second = allocate(rows, variants, first, settings, FIRST)
    assert weights(second)["v1"] == pytest.approx(0.9)
    third = weights(allocate(rows, variants, second, settings, FIRST))
    assert third["v1"] == pytest.approx(0.95, abs=1e-3)  # the floor


def test_a_new_variant_starts_even_and_the_others_share_the_rest():
    variants, rows = place([30, 60, 0])
    held = allocate(rows.slice(0, 2), variants.slice(0, 2), NONE, Allocation(max_shift=1), FIRST)
    found = weights(allocate(rows.slice(0, 2), variants, held, Allocation(max_shift=1e-6), FIRST))
    assert found["v2"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["v1"] / found["v0"] == pytest.approx(weights(held)["v1"] / weights(held)["v0"], rel=0.01)


def test_old_outcomes_fade():
    variants, old = place([60, 10])
    _, new = place([10, 60], day=FIRST + timedelta(56))
    both = pa.concat_tables([old, new])
    assert weights(allocate(both, variants, NONE, FREE, FIRST + timedelta(56)))["v1"] > 0.9
    even = posterior(both, variants, FREE.model_copy(update={"half_life_days": 1e6}), FIRST + timedelta(56))
    assert even.ctr[0] == pytest.approx(even.ctr[1], rel=0.01)


def test_what_the_level_above_counts_follows_from_how_much_variants_differ():
    alike, differ = (
        posterior(rows, variants, FREE, FIRST).strength
        for variants, rows, _ in (catalog(300, 3, spread=s) for s in (0.02, 0.6))
    )
    assert alike > 20 * differ
    assert 40 < differ < 200  # 1 / (rate x (exp(spread^2) - 1)) is some 75
    nothing = posterior(outcomes(**{n: [] for n in ("impressions", "clicks")}), place([0, 0])[0], FREE, FIRST)
    assert nothing.strength == FREE.prior_impressions


def test_shrunk_rates_are_nearer_to_the_truth_than_raw_ones():
    variants, rows, rates = catalog(200, 3, shown=200)
    raw = rows["clicks"].to_numpy() / 200
    shrunk = posterior(rows, variants, FREE, FIRST).ctr
    assert np.mean((shrunk - rates) ** 2) < 0.6 * np.mean((raw - rates) ** 2)


def test_the_margin_helps_new_variants_where_clicks_follow_it_and_not_where_they_do_not():
    variants, rows, _ = catalog(150, 3, slope=15.0)
    found = posterior(rows, variants, FREE, FIRST).margin
    assert found.slope == pytest.approx(15, rel=0.3)
    high, low = (
        pa.table({**variants.slice(0, 1).to_pydict(), "creative_id": [f"new{m}"], "margin": [m]}, VARIANTS)
        for m in (0.1, 0.0)
    )
    ctr = posterior(rows, pa.concat_tables([variants, high, low]), FREE, FIRST).ctr
    assert ctr[-2] > 1.5 * ctr[-1]
    unsupported = [
        posterior(rows, v, FREE, FIRST).margin.slope for v, rows, _ in (catalog(150, 3, s) for s in range(10))
    ]
    assert sum(slope == 0 for slope in unsupported) >= 8
    assert max(map(abs, unsupported)) < 4


def test_robots_do_not_win():
    variants, rows, _ = catalog(40, 2, spread=0.0)
    clicks = rows["clicks"].to_numpy().copy()
    clicks[0] = 1900
    spoiled = rows.set_column(rows.schema.get_field_index("clicks"), "clicks", pa.array(clicks))
    rates = posterior(spoiled, variants, FREE, FIRST)
    assert rates.ctr[0] < 1.5 * np.median(rates.ctr)


def test_what_is_surely_worse_is_retired_worst_first_and_never_a_places_best():
    variants, rows, true = catalog(100, 3, spread=0.4, shown=20_000)
    rates = posterior(rows, variants, FREE, FIRST)
    found = retirements(rates, Retirement(most=1000, min_impressions=1000))
    assert 50 < found.num_rows <= 200
    of = dict(zip(variants["creative_id"].to_pylist(), true, strict=True))
    assert np.mean([of[r["creative_id"]] < of[r["best_id"]] for r in found.to_pylist()]) > 0.98
    left = set(variants["creative_id"].to_pylist()) - set(found["creative_id"].to_pylist())
    assert {name[:5] for name in left} == {f"{p:05d}" for p in range(100)}
    lost = found["lost_clicks"].to_numpy()
    assert (np.diff(lost) <= 0).all()
    few = retirements(rates, Retirement(most=5))
    assert few.equals(found.slice(0, 5))
    spared = retirements(rates, Retirement(most=5), few["creative_id"].combine_chunks())
    assert not set(spared["creative_id"].to_pylist()) & set(few["creative_id"].to_pylist())
    assert retirements(rates, Retirement()).num_rows == 0
    assert retirements(rates, Retirement(most=1000, min_impressions=30_000)).num_rows == 0


def test_the_probability_of_being_worse_is_that_of_the_betas():
    variants, rows = place([40, 70], 2000)
    rates = posterior(rows, variants, FREE, FIRST)
    draws = np.random.default_rng(0).beta(rates.clicks, rates.misses, (400_000, 2))
    found = retirements(rates, Retirement(most=1, probability=0.51))["probability"][0].as_py()
    assert found == pytest.approx((draws[:, 0] < draws[:, 1]).mean(), abs=0.003)


EXPERIMENT = Experiment(name="style", arms=(Arm(name="qc"), Arm(name="llm")))


def arms(seed, factor, experiment="style"):
    """A month in which every second pair, by chance, is in the arm llm, with `factor` times the clicks."""
    rows = month(seed, control=0.0, days=5)
    pair = np.unique(rows["creative_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    other = np.random.default_rng(seed).random(pair.max() + 1)[pair] < 0.5
    arm = [f"before=x,{experiment}={'llm' if o else 'qc'}" for o in other]
    clicks = np.where(other, rows["clicks"].to_numpy() * factor, rows["clicks"].to_numpy()).astype(np.int64)
    for name, values in (("arm", pa.array(arm)), ("clicks", pa.array(clicks))):
        rows = rows.set_column(rows.schema.get_field_index(name), name, values)
    return rows


def test_the_better_arm_gets_more_in_each_family_and_an_ended_experiment_all():
    rows, families = arms(0, 2), ["events", "seasons", "sports"]
    found = allocate_arms(rows, families, [EXPERIMENT], NONE, FREE, FIRST + timedelta(5))
    schema.check(found, schema.ALLOCATIONS)
    by_arm = {(r["family"], r["arm"]): r for r in found.to_pylist()}
    assert len(by_arm) == 6
    for family in families:
        assert by_arm[family, "llm"]["weight"] > 0.8
        assert by_arm[family, "llm"]["weight"] + by_arm[family, "qc"]["weight"] == pytest.approx(1)
        assert by_arm[family, "llm"]["ctr_low"] < by_arm[family, "llm"]["ctr"] < by_arm[family, "llm"]["ctr_high"]
    ended = EXPERIMENT.model_copy(update={"ended": "qc", "families": ("sports",)})
    found = allocate_arms(rows, families, [ended], NONE, FREE, FIRST).to_pylist()
    assert {(r["family"], r["arm"], r["weight"]) for r in found} == {("sports", "qc", 1.0), ("sports", "llm", 0.0)}
    unseen = allocate_arms(arms(0, 2, "other"), families, [EXPERIMENT], NONE, FREE, FIRST)
    assert unseen["weight"].to_numpy() == pytest.approx(0.5, abs=0.05)


def test_pairs_that_differ_do_not_make_an_arm_win():
    """Without a difference, no arm of 40 trials of three families is taken for surely better."""
    taken = [
        allocate_arms(arms(s, 1), ["events", "seasons", "sports"], [EXPERIMENT], NONE, FREE, FIRST) for s in range(40)
    ]
    largest = np.array([w for t in taken for w in t["weight"].to_pylist()])
    assert (largest > 0.94).mean() < 0.03
