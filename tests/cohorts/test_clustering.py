import numpy as np
import pytest

from adbooster.cohorts import clustering
from adbooster.cohorts.clustering import unit
from adbooster.cohorts.config import Clustering


def blobs(k=6, n=200, dimensions=16, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    centres = unit(np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0][:k])
    labels = np.repeat(np.arange(k), n)
    return unit(centres[labels] + noise * rng.normal(size=(k * n, dimensions)) / 4), centres, labels


@pytest.mark.parametrize("settings", [Clustering(k=6), Clustering(k_range=(2, 20))])
def test_clusters_are_found_and_the_same_by_seed(settings):
    users, centres, _ = blobs()
    found = clustering.fit(users, settings, np.zeros((0, 16), np.float32))
    assert len(found) == 6
    assert (centres @ found.T).max(axis=1).min() > 0.98
    assert np.array_equal(found, clustering.fit(users, settings, np.zeros((0, 16), np.float32)))


def test_last_nights_cohorts_stay_where_they_still_fit_and_go_where_not():
    users, centres, _ = blobs()
    kept = clustering.fit(users, Clustering(k=6), centres[::-1])
    assert (kept * centres[::-1]).sum(axis=1).min() > 0.98, "in last night's order: moved, not made anew"
    wrong = np.tile(centres[:1], (6, 1)).astype(np.float32) + np.eye(6, 16, dtype=np.float32) * 1e-3
    assert (centres @ clustering.fit(users, Clustering(k=6), unit(wrong)).T).max(axis=1).min() > 0.98


def test_small_and_untold_clusters_go_to_their_nearest():
    sums = np.array([[100, 0], [0, 100], [3, 1], [1, 30]], float)
    goes = clustering.merge_small(sums, np.array([100, 100, 4, 30]), np.array([True, True, True, False]), 10)
    assert goes.tolist() == [0, 1, 0, 1]
    assert (clustering.merge_small(sums[:2], np.array([3, 3]), np.array([True, True]), 10) == -1).all()


def test_matching_is_one_to_one_above_a_threshold():
    old = unit(np.array([[1, 0, 0], [0, 1, 0]], float))
    new = unit(np.array([[0, 0, 1], [0.1, 1, 0], [0.3, 1, 0]], float))
    assert clustering.match(new, old, 0.9) == {1: 1}
