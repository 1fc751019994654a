import numpy as np
import pyarrow as pa
import pytest

from adbooster.measure import diversity


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scenes(*rows):
    """Rows of (product, cohort, phash, simhash or None, score)."""
    names = ("product_id", "cohort_id", "background_phash", "background_simhash", "clip_score")
    table = pa.table({n: list(c) for n, c in zip(names, zip(*rows, strict=True), strict=True)})
    n = table.num_rows
    return table.append_column("placement", [["square"] * n]).append_column("creative_id", [[str(i) for i in range(n)]])


A, NEAR_A, B = "0" * 16, "0" * 15 + "7", "f" * 16
S = "0" * 64


def test_repeats_are_told_by_cohort_and_by_product_apart():
    rows = scenes(("p1", "c1", A, S, 0.9), ("p2", "c1", A, S, 0.8), ("p1", "c2", B, S, 0.7), ("p3", "c3", A, S, 0.6))
    assert diversity.repeats(rows, "cohort_id", diversity.EXACT).tolist() == [0, 1, 0, 0]
    assert diversity.repeats(rows, "product_id", diversity.EXACT).tolist() == [0, 0, 0, 0]


def test_near_is_not_equal_and_the_better_one_stays():
    rows = scenes(("p1", "c1", A, S, 0.1), ("p1", "c2", NEAR_A, S, 0.8))
    assert diversity.repeats(rows, "product_id", diversity.EXACT).tolist() == [0, 0]
    assert diversity.repeats(rows, "product_id", diversity.NEAR).tolist() == [1, 0]


def test_an_original_has_no_scene_to_repeat():
    rows = scenes(("p1", "c1", None, None, 0.9), ("p1", "c1", A, S, 0.8))
    assert np.isnan(diversity.repeats(rows, "cohort_id", diversity.NEAR)).tolist() == [True, False]


def test_distances_apart_are_mean_pairwise_distances():
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(6, 8)))
    groups = ["a", "a", "a", "b", "b", "c"]
    found = diversity.apart(vectors, groups)
    pairs = [1 - vectors[i] @ vectors[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found[:3].mean() == pytest.approx(np.mean(pairs))
    assert found[3] == pytest.approx(1 - vectors[3] @ vectors[4])
    assert np.isnan(found[5])


def test_a_picture_without_a_vector_is_left_out():
    vectors = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    found = diversity.apart(vectors, ["a"] * 3)
    assert found[[0, 2]].tolist() == [1, 1]
    assert np.isnan(found[1])


def test_clusters_count_scenes_that_differ():
    rng = np.random.default_rng(0)
    centres = np.eye(16)[:5]
    vectors = unit(np.repeat(centres, 20, axis=0) + rng.normal(0, 0.02, (100, 16)))
    assert diversity.clusters(vectors) == 5
    assert diversity.clusters(vectors[:1]) == 1


def test_fid_and_kid_grow_with_distance_and_fid_is_frechets():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    near, far = diversity.distances(a, b), diversity.distances(a + 2, b)
    mean = a.mean(0) + 2 - b.mean(0)
    assert far["fid"][0] == pytest.approx(
        mean @ mean + near["fid"][0] - (a.mean(0) - b.mean(0)) @ (a.mean(0) - b.mean(0)), rel=1e-6
    )
    assert abs(near["kid"][0]) < 0.05 < far["kid"][0]


def test_two_pictures_are_no_distribution():
    assert diversity.distances(np.eye(4)[:2], np.eye(4)) == {}
