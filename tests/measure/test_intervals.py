import numpy as np
import pytest

from adbooster.measure import intervals


def test_a_mean_comes_with_its_interval_and_leaves_out_what_was_not_measured():
    found = intervals.mean(np.array([1.0, 2.0, np.nan, 3.0, 4.0]), ["a", "b", "c", "d", "e"])
    assert found.mean == 2.5
    assert 1 <= found.low < 2.5 < found.high <= 4


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_nothing_measured_is_no_figure(values):
    assert intervals.mean(np.array(values, float), ["a"] * len(values)) is None


def test_one_cluster_has_a_mean_and_no_interval():
    found = intervals.mean(np.array([1.0, 3.0]), ["a", "a"])
    assert (found.mean, found.low, found.high) == (2.0, None, None)


def test_clusters_are_resampled_and_not_the_pictures_in_them():
    """Ten equal pictures of a product tell no more than one: an interval over pictures would be three times narrower."""
    rng = np.random.default_rng(0)
    products = rng.normal(size=12)
    values, names = np.repeat(products, 10), [str(i // 10) for i in range(120)]
    by_product = intervals.mean(values, names)
    alone = intervals.mean(products, [str(i) for i in range(12)])
    by_picture = intervals.mean(values, [str(i) for i in range(120)])
    assert by_product.model_dump() == pytest.approx(alone.model_dump())
    assert (by_product.high - by_product.low) > 2.5 * (by_picture.high - by_picture.low)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(150):
        values = np.repeat(rng.normal(1.0, 1.0, size=15), 4) + rng.normal(0, 0.3, size=60)
        found = intervals.mean(values, [str(i // 4) for i in range(60)], resamples=400)
        hits += found.low <= 1.0 <= found.high
    assert 0.85 <= hits / 150 <= 0.99


def test_a_paired_interval_is_narrower_than_the_spread_of_either_side():
    rng = np.random.default_rng(2)
    neutral = rng.normal(0.3, 0.2, size=40)
    creative = neutral + 0.1 + rng.normal(0, 0.01, size=40)
    names = [str(i) for i in range(40)]
    found = intervals.difference(creative, neutral, names)
    assert found.high - found.low < 0.02
    assert found.low < 0.1 < found.high
    assert intervals.mean(creative, names).high - intervals.mean(creative, names).low > 0.08


def test_an_uplift_is_a_ratio_of_means():
    found = intervals.ratio(np.array([0.4, 0.8, 0.6]), np.array([0.2, 0.6, 0.4]), ["a", "b", "c"])
    assert found.mean == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize("under", [[-0.1, -0.2, -0.3], [0.3, -0.29, 0.0]])
def test_an_uplift_over_what_may_be_nothing_is_not_given(under):
    assert intervals.ratio(np.array([0.5, 0.5, 0.5]), np.array(under), ["a", "b", "c"]) is None


def test_a_pair_without_its_baseline_is_left_out():
    found = intervals.ratio(np.array([0.4, 9.0, 0.8]), np.array([0.2, np.nan, 0.4]), ["a", "b", "c"])
    assert found.mean == pytest.approx(1.0)


def test_shares_have_wilsons_interval():
    found = intervals.share(0, 10)
    assert (found.mean, found.low) == (0, 0)
    assert found.high == pytest.approx(0.2775, abs=1e-3)  # 1.96^2 / (10 + 1.96^2)


def test_a_correlation_is_of_ranks_and_needs_something_to_correlate():
    x = np.arange(30.0)
    assert intervals.correlation(x, np.exp(x)).mean == pytest.approx(1)
    noise = np.random.default_rng(3).normal(size=30)
    found = intervals.correlation(x, noise)
    assert found.low < 0 < found.high
    assert intervals.correlation(x, np.ones(30)) is None
    assert intervals.correlation(x[:3], x[:3]) is None
