import numpy as np
import pytest

from adbooster.reward.off_policy import Logged, chosen, doubly_robust, snips, values


def logged(propensity, clicks, impressions=None, places=None):
    n = len(clicks)
    places = np.repeat(np.arange(n // 2), 2).astype(str) if places is None else places
    shown = np.asarray(propensity) * 1000 if impressions is None else np.asarray(impressions)
    return Logged(places, np.arange(n).astype(str), shown, np.asarray(clicks, float), np.asarray(propensity), places)


def test_a_policy_takes_the_best_of_every_place_on_all_its_days():
    places, variants = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 1, 2, 3])
    assert chosen(places, variants, np.array([0.1, 0.9, 0.9, 0.5, 0.5])).tolist() == [0, 1, 1, 1, 0]


def test_the_values_are_those_of_the_textbooks():
    """Two places by hand, as Swaminathan & Joachims (2015) and Dudik et al. (2011) define them; a sample is an impression."""
    rows = logged([0.8, 0.2, 0.5, 0.5], [8, 6, 10, 5], [80, 20, 50, 50])
    at, taken = np.array([0, 0, 1, 1]), np.array([0, 1.0, 1.0, 0])
    over, under = snips(rows, at, taken, np.zeros(4))
    assert over.sum() / under.sum() == pytest.approx((6 / 0.2 + 10 / 0.5) / (20 / 0.2 + 50 / 0.5))
    predicted = np.array([0.1, 0.25, 0.15, 0.1])
    over, under = doubly_robust(rows, at, taken, predicted)
    direct = 100 * 0.25 + 100 * 0.15
    corrected = (6 - 20 * 0.25) / 0.2 + (10 - 50 * 0.15) / 0.5
    assert over.sum() / under.sum() == pytest.approx((direct + corrected) / 200)


@pytest.mark.parametrize("model", ["right", "wrong"])
def test_both_find_what_the_other_choice_is_worth_where_one_was_shown_seldom(model):
    rng = np.random.default_rng(1)
    n = 800
    rates = rng.uniform(0.02, 0.1, 2 * n)
    share = np.tile([0.9, 0.1], n)
    shown = rng.binomial(1000, share)
    rows = logged(share, rng.binomial(shown, rates), shown)
    predicted = rates if model == "right" else np.full(2 * n, 0.3)
    better, worse = rates, -rates
    true = rates.reshape(n, 2).max(axis=1).mean(), rates.reshape(n, 2).min(axis=1).mean()
    for value in values(rows, better, worse, predicted):
        assert value.by_score.mean == pytest.approx(true[0], rel=0.03)
        assert value.by_clip.mean == pytest.approx(true[1], rel=0.03)
        assert value.by_score.low < true[0] < value.by_score.high
        assert value.gain.low > 0
        assert 0 < value.effective_impressions < shown.sum()


def test_places_with_one_variant_and_unknown_propensities_say_nothing():
    rows = logged([1.0, 1.0], [3, 4], places=np.array(["a", "b"]))
    assert values(rows, np.zeros(2), np.zeros(2), np.zeros(2)) == []
    rows = logged([np.nan, np.nan], [3, 4], [100, 100])
    assert values(rows, np.zeros(2), np.zeros(2), np.zeros(2)) == []
