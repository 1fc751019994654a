from dataclasses import replace

import numpy as np
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.reward.config import RewardTraining
from adbooster.reward.features import features
from adbooster.reward.resampling import Clusters, Order, wilson
from adbooster.reward.training import _differ, train_reward
from tests.reward.made import audience, unit


@pytest.fixture(scope="module")
def liked():
    examples, rates = audience()
    return examples, rates, *train_reward(examples)


def seen(examples):
    return features(examples.image_vectors, examples.text_vectors, examples.figures)


def test_a_taste_that_clip_does_not_know_is_learned(liked):
    _, _, head, figures = liked
    assert figures.surely_better
    assert figures.total.auc_gain.low > 0.02
    assert figures.total.log_loss_gain.low > 0
    assert set(figures.families) == {"seasons", "events", "sports"}
    assert all(f.auc > f.clip_auc for f in figures.families.values())
    new, true = audience(seed=0, products=60)  # the same taste, half of the products new
    late = np.arange(len(true)) >= len(true) // 2
    assert np.corrcoef(head.score(seen(new))[late], true[late])[0, 1] > 0.8


def test_scores_are_probabilities_that_come_true(liked):
    examples, rates, head, figures = liked
    assert head.score(seen(examples)).mean() == pytest.approx(rates.mean(), rel=0.1)
    inside = [b.observed.low - 0.01 <= b.predicted <= b.observed.high + 0.01 for b in figures.calibration]
    assert sum(inside) >= 8


def test_scores_are_probabilities_of_all_impressions_where_places_differ():
    """What is learned counts a creative less the more clicks it has; what its score says must not: half of the places have five
    times the clicks of the others."""
    examples, rates = audience(products=40, impressions=20_000)
    rng = np.random.default_rng(0)
    rates = rates / rates.mean() * np.where(examples.cohorts.astype(int) % 2, 0.05, 0.01)
    clicks = rng.binomial(examples.impressions.astype(int), np.minimum(rates, 1)).astype(float)
    head, figures = train_reward(replace(examples, clicks=clicks, propensity=np.full(len(rates), np.nan)))
    observed = clicks.sum() / examples.impressions.sum()
    scores = np.average(head.score(seen(examples)), weights=examples.impressions)
    assert scores == pytest.approx(observed, rel=0.1)
    assert sum(b.n for b in figures.calibration) == pytest.approx(examples.impressions.sum())


@pytest.mark.parametrize("broken", [0, 20_000])
def test_how_much_rates_differ_is_found_and_not_by_one_place_alone(broken):
    """Two variants in each of 200 places, half of them shown a hundred times as often; one place may have clicks that no people make."""
    rng, place = np.random.default_rng(0), np.repeat(np.arange(200), 2)
    shown = np.where(place % 2, 50_000, 500)
    clicks = rng.poisson(shown * 0.02 * np.exp(0.4 * rng.normal(size=400))).astype(float)
    clicks[-1] += broken
    share = shown / np.bincount(place, shown)[place]
    found = _differ(clicks, np.bincount(place, clicks)[place] * share, share, place, np.bincount(place))
    true = np.exp(0.4**2) - 1
    assert true / 2 < found < true * 1.5


def test_days_of_a_creative_apart_and_together_teach_the_same():
    """Every third creative has a row for each of twenty days; it counts no more for that."""
    examples, rates = audience(products=20, impressions=20_000)
    n = len(rates)
    days = np.where(np.arange(n) % 3 == 0, 20, 1)
    at = np.repeat(np.arange(n), days)
    apart = {
        k: {name: v[at] for name, v in value.items()} if k == "figures" else value[at]
        for k, value in vars(examples).items()
        if len(value)
    }
    apart |= {name: apart[name] / days[at] for name in ("impressions", "clicks")}
    a, b = (train_reward(e)[0].logits(seen(examples)) for e in (examples, replace(examples, **apart)))
    assert np.corrcoef(a, b)[0, 1] > 0.98


def test_an_audience_that_clicks_by_clip_alone_leaves_nothing_to_be_surely_better_in():
    for seed in range(3):
        assert not train_reward(audience(taste=0.0, seed=seed)[0])[1].surely_better


def test_base_rates_of_cohorts_are_no_gain():
    """People who click more on anything are told by the text; that must not count as telling pictures apart."""
    examples, _ = audience(taste=0.0)
    rng = np.random.default_rng(0)
    rates = 0.02 + 0.02 * examples.cohorts.astype(int)
    clicks = rng.binomial(examples.impressions.astype(int), rates).astype(float)
    figures = train_reward(replace(examples, clicks=clicks))[1]
    assert figures.total.log_loss_gain.low <= 0
    assert not figures.surely_better


def test_how_often_a_creative_was_shown_does_not_decide_what_is_learned():
    """Ten times the clicks say a little more; one row in twenty that was shown ten thousand times as often does not decide."""
    examples, rates = audience(products=20)
    often = replace(examples, impressions=examples.impressions * 10, clicks=examples.clicks * 10)
    a, b = (train_reward(e)[0].logits(seen(e)) for e in (examples, often))
    assert np.corrcoef(a, b)[0, 1] > 0.99
    rng = np.random.default_rng(0)
    shown = np.where(rng.random(len(rates)) < 0.05, 10_000_000, 1_000)
    # Rates differ by more than a head sees, as people's do.
    clicks = rng.binomial(shown, np.minimum(rates * np.exp(0.5 * rng.normal(size=len(rates))), 1))
    uneven = replace(examples, impressions=shown.astype(float), clicks=clicks.astype(float))
    assert np.corrcoef(train_reward(uneven)[0].logits(seen(examples)), rates)[0, 1] > 0.75


def test_pictures_of_one_place_are_told_apart_where_cohorts_differ_far_more():
    """Vectors of many products and cohorts differ by these first; a head has to see what tells the pictures of a place apart."""
    examples, _ = audience(products=24)
    n, side, rng = len(examples.clicks), 64, np.random.default_rng(1)
    places = np.unique(examples.places, return_inverse=True)[1]
    own = rng.normal(size=(n, 32))  # ways in which pictures of a place differ, of which people see the first
    own[:, 0] *= 3
    directions = unit(rng.normal(size=(32, side)))
    images = unit(unit(rng.normal(size=(places.max() + 1, side)))[places] + 0.015 * own @ directions)
    rates = 0.02 * np.exp(0.15 * own[:, 0])
    clicks = rng.binomial(examples.impressions.astype(int) * 10, rates).astype(float)
    texts = unit(rng.normal(size=(6, side)))[examples.cohorts.astype(int)]
    made = {"image_vectors": images, "text_vectors": texts, "clip_scores": (images * texts).sum(axis=1)}
    some = replace(examples, **made, impressions=examples.impressions * 10, clicks=clicks)
    head, figures = train_reward(some, RewardTraining(components=4))
    assert figures.surely_better
    logits = head.logits(seen(some))
    apart = [v - (np.bincount(places, v) / np.bincount(places))[places] for v in (logits, own[:, 0])]
    assert apart[0].std() == pytest.approx(head.card.scale.logit_sd, rel=0.5), "in a blend they count as CLIP's do"
    assert np.corrcoef(*apart)[0, 1] > 0.9


def test_marks_alone_are_enough_and_clicks_keep_their_base_rate_beside_them():
    examples, rates = audience(products=20)
    n = len(rates)
    verdicts = (rates > np.median(rates)).astype(float)
    nothing = dict.fromkeys(("impressions", "clicks"), np.zeros(n))
    marked = replace(examples, **nothing, propensity=np.full(n, np.nan), approved=verdicts)
    head, figures = train_reward(marked)
    assert figures.marks == n
    assert np.corrcoef(head.logits(seen(examples)), rates)[0, 1] > 0.7
    both = replace(
        examples,
        **{
            name: (
                {k: np.tile(v, 2) for k, v in examples.figures.items()}
                if name == "figures"
                else np.concatenate([getattr(examples, name), getattr(marked, name)])
            )
            for name in vars(examples)
            if name != "approved"
        },
        approved=np.concatenate([np.full(n, np.nan), verdicts]),
    )
    head, figures = train_reward(both)
    assert figures.marks == n
    assert head.score(seen(examples)).mean() == pytest.approx(rates.mean(), rel=0.15)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"clicks": lambda e: e.impressions + 1}, "clicks of"),
        ({"propensity": lambda e: np.zeros(len(e.clicks))}, "propensity of 0"),
        ({"clip_scores": lambda e: np.full(len(e.clicks), np.nan)}, "no number"),
        ({"groups": lambda e: np.full(len(e.clicks), "p1")}, "are of 1 products"),
        ({"clicks": lambda e: np.zeros(len(e.clicks))}, "0 clicks and no marks"),
        ({"groups": lambda e: e.groups[:-1]}, "another length"),
    ],
)
def test_what_cannot_be_learned_from_is_one_sentence(wrong, sentence):
    examples, _ = audience(products=12)
    with pytest.raises(ConfigError, match=sentence):
        train_reward(replace(examples, **{name: made(examples) for name, made in wrong.items()}))


def test_isotonic_steps_only_rise():
    head, _ = train_reward(audience(products=12)[0], RewardTraining(calibration="isotonic"))
    logits = np.linspace(-8, 2, 50)
    scores = head.calibration.probabilities(logits)
    assert (np.diff(scores) >= 0).all()
    assert ((scores > 0) & (scores < 1)).all()


def test_auc_counts_pairs_of_one_stratum_and_ties_half():
    scores, strata = np.array([1.0, 2.0, 2.0, 5.0, 1.0]), np.array(["a", "a", "a", "b", "b"])
    positive, negative = np.array([0, 1, 0, 0, 1.0]), np.array([1, 0, 1, 1, 0.0])
    # a: the positive 2 against 1 (right) and 2 (tie), weight 2/3; b: the positive 1 against 5 (wrong), weight 1/2
    assert Order(scores, strata).auc(positive, negative) == pytest.approx((0.75 * 2 / 3 + 0) / (2 / 3 + 1 / 2))
    rng = np.random.default_rng(0)
    y, s, w = rng.random(200) < 0.4, rng.normal(size=200).round(1), rng.random(200)
    from sklearn.metrics import roc_auc_score

    assert Order(s, np.zeros(200)).auc(w * y, w * ~y) == pytest.approx(roc_auc_score(y, s, sample_weight=w))


def test_intervals_know_that_rows_of_one_product_are_alike():
    rng = np.random.default_rng(0)
    of_product, own = rng.normal(size=30), np.repeat(np.arange(30), 40)
    values, one = of_product[own], np.ones(1200)
    wide, narrow = (Clusters(c.astype(str)).ratio(values, one) for c in (own, np.arange(1200)))
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)
    assert wilson(9, 10).low == pytest.approx(0.5958, abs=1e-3)  # Wilson, 1927
