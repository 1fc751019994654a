from datetime import date, timedelta

import pyarrow as pa
import pytest
from pydantic import ValidationError

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.experiments.config import Arm, Experiment
from adbooster.experiments.prompter import ArmPrompter, arms_of, prompting_of
from adbooster.experiments.variants import draw, period, probabilities
from adbooster.generate.checks import check as check_generate
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from tests.conftest import row
from tests.generate.test_generate import config
from tests.generate.test_retirement import nights, on  # noqa: F401

N = 6000
PRODUCTS = pa.array([f"P{i}" for i in range(N)])
COHORTS = pa.array([f"c{i % 5}" for i in range(N)])
FAMILIES = pa.array([("events", "seasons")[i % 2] for i in range(N)])
TWO = (Arm(name="plain"), Arm(name="photo", template="a photo of {product}, {query}, {context}"))


def experiment(name="prompts", arms=TWO, **more):
    return Experiment(name=name, arms=arms, **more)


def weights(**by_arm):
    """Of the experiment `prompts` in the family events."""
    rows = [
        row(schema.ALLOCATIONS, level="arm", experiment="prompts", family="events", arm=arm, weight=weight)
        for arm, weight in by_arm.items()
    ]
    return pa.Table.from_pylist([*rows, row(schema.ALLOCATIONS, level="variant", weight=1.0)], schema.ALLOCATIONS)


def assigned(*experiments, learned=None):
    return arms_of(PRODUCTS, COHORTS, FAMILIES, experiments, weights() if learned is None else learned).to_pylist()


def share(arms, name, family="events"):
    mine = [arm for arm, of in zip(arms, FAMILIES.to_pylist(), strict=True) if of == family]
    return sum(arm == name for arm in mine) / len(mine)


def test_arms_have_equal_shares_before_anything_is_learned_and_then_those_of_the_allocations():
    before = assigned(experiment())
    assert abs(share(before, "prompts=plain") - 0.5) < 0.03
    after = assigned(experiment(), learned=weights(plain=0.2, photo=0.8))
    assert abs(share(after, "prompts=plain") - 0.2) < 0.03
    assert abs(share(after, "prompts=plain", "seasons") - 0.5) < 0.03, "the other family has learned nothing"


def test_other_weights_move_only_the_pairs_that_have_to():
    before = assigned(experiment(), learned=weights(plain=0.5, photo=0.5))
    after = assigned(experiment(), learned=weights(plain=0.4, photo=0.6))
    moved = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert set(moved) == {("prompts=plain", "prompts=photo")}
    assert abs(len(moved) / N - 0.05) < 0.015, "a tenth of one of two families"
    assert assigned(experiment()) == assigned(experiment()), "names alone decide"


def test_an_experiment_runs_in_its_families_and_ends_on_one_arm():
    some = assigned(experiment(families=("seasons",)))
    assert {arm for arm, family in zip(some, FAMILIES.to_pylist(), strict=True) if family == "events"} == {None}
    ended = assigned(experiment(ended="photo", families=("events",)), learned=weights(plain=1.0, photo=0.0))
    assert set(ended) == {"prompts=photo", None}


def test_several_experiments_are_independent():
    both = assigned(experiment(), experiment("styles", families=("events",)))
    counts = {name: share(both, name) for name in set(both)}
    four = [f"prompts={a},styles={b}" for a in ("plain", "photo") for b in ("plain", "photo")]
    assert all(abs(counts[name] - 0.25) < 0.03 for name in four)
    assert abs(share(both, "prompts=plain", "seasons") - 0.5) < 0.03
    assert [a.split(",")[0] for a in both] == assigned(experiment())


@pytest.mark.parametrize(
    ("allocated", "expected"),
    [
        ([None, None], [0.5, 0.5]),
        ([0.9, 0.1], [0.9, 0.1]),
        ([0.6, 0.2, None, None], [0.375, 0.125, 0.25, 0.25]),
        ([0.3], [1.0]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.0, None], [0.5, 0.5]),
    ],
)
def test_what_has_no_weight_gets_an_even_share_and_the_rest_is_divided(allocated, expected):
    assert probabilities(allocated) == pytest.approx(expected)


def test_a_draw_has_its_probability_and_is_the_same_for_the_same_names():
    wanted = [0.6, 0.0, 0.3, 0.1]
    drawn = [draw(wanted, "0", product) for product in PRODUCTS.to_pylist()]
    assert [drawn.count(i) / N for i in range(4)] == pytest.approx(wanted, abs=0.025)
    assert drawn == [draw(wanted, "0", product) for product in PRODUCTS.to_pylist()]
    assert drawn != [draw(wanted, "1", product) for product in PRODUCTS.to_pylist()]
    assert draw([1.0], "any") == 0


def test_periods_are_counted_from_the_calendar():
    days = [date(2026, 12, 28) + timedelta(days=i) for i in range(28)]
    assert len({period(day, 1) for day in days}) == 28
    weeks = [period(day, 7) for day in days]
    assert all(weeks.count(week) == 7 for week in set(weeks[7:-7])), "whatever month or year it is"


def test_prompts_are_those_of_the_arm_and_stay_in_order(root):
    pairs = pa.Table.from_pylist(
        [
            row(schema.PAIRS, product_id=p, cohort_id="c1", family="events", words="mug", query="tea", context="snow")
            for p in PRODUCTS.slice(0, 40).to_pylist()
        ],
        schema.PAIRS,
    )
    found = ArmPrompter(root, Prompting(), (experiment(),)).write(pairs)
    assert found["product_id"].to_pylist() == pairs["product_id"].to_pylist()
    texts = {"prompts=plain": "mug, tea, snow", "prompts=photo": "a photo of mug, tea, snow"}
    assert found["prompt"].to_pylist() == [texts[arm] for arm in found["arm"].to_pylist()]
    assert set(found["arm"].to_pylist()) == set(texts)
    plain = ArmPrompter(root, Prompting()).write(pairs)
    assert (plain["arm"].null_count, plain["prompt"].unique().to_pylist()) == (40, ["mug, tea, snow"])
    writer = ArmPrompter(root, Prompting(), (experiment(),))
    writer.write(pairs)
    writer.write(pairs)
    assert (writer.figures.pairs, writer.figures.style) == (80, "qc")


def test_an_arm_that_says_the_same_repaints_nothing_and_its_creatives_are_counted_to_it(stocked, nights):  # noqa: F811
    nights("n1")
    first = {c: on(stocked, c) for c in ("c1", "c2")}
    ran = {"experiments": [{"name": "prompts", "arms": [arm.model_dump() for arm in TWO]}]}
    arms = arms_of(
        pa.array(["P1", "P1"]), pa.array(["c1", "c2"]), pa.array(["events", "seasons"]), [experiment()], weights()
    )
    changed = arms.to_pylist().count("prompts=photo")
    report, painted = nights("n2", **ran)
    assert (painted, report.requests) == (changed, 2)
    for cohort, arm in zip(("c1", "c2"), arms.to_pylist(), strict=True):
        rows = on(stocked, cohort)
        assert {r["arm"] for r in rows} == {arm}
        same = [r | {"arm": None} for r in rows] == first[cohort]
        assert same == (arm == "prompts=plain")
    version = tables.version(stocked, "creatives")
    assert nights("n3", **ran)[1] == 0
    assert tables.version(stocked, "creatives") == version
    # It ends on what was there before it: the others are painted back, the same pictures.
    ran["experiments"][0]["ended"] = "plain"
    assert nights("n4", **ran)[1] == changed
    for cohort in ("c1", "c2"):
        assert [r["sha256"] for r in on(stocked, cohort)] == [r["sha256"] for r in first[cohort]]


@pytest.mark.parametrize(
    ("experiments", "said"),
    [
        ([experiment(), experiment()], "two experiments are called 'prompts'"),
        (
            [experiment(families=("events", "sport"))],
            "names the family 'sport', of which tables/cohorts has no cohort; there are",
        ),
        (
            [experiment(arms=(Arm(name="a"), Arm(name="b", template="{query}")))],
            "the arm 'b' of 'prompts' cannot be used",
        ),
        ([experiment(arms=(Arm(name="a"), Arm(name="b", style="llm")))], "llm"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_anything_starts(stocked, experiments, said):
    with pytest.raises(ConfigError, match=said):
        check_generate(config(stocked, experiments=[e.model_dump() for e in experiments]))


def test_arms_change_what_they_set_and_nothing_else():
    section = Prompting(negative_prompt="blurry", window_tokens=50)
    assert prompting_of(section, [Arm(name="a")]) == section
    both = prompting_of(section, [TWO[1], Arm(name="x", style="llm")])
    assert (both.template, both.style, both.negative_prompt) == (TWO[1].template, "llm", "blurry")
    with pytest.raises(ValidationError):
        prompting_of(section, [Arm(name="b", template="{nothing}")])
