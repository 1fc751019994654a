import numpy as np
import pytest

from adbooster.contracts import evaluation
from adbooster.measure import statistics
from tests.fake_measurements import looks


def named(found):
    return {f.name: f for f in found}


def test_all_that_was_measured_has_a_figure_and_what_was_not_has_none():
    found = named(statistics.figures(looks()))
    assert set(evaluation.KINDS) - {"people", "text_in_scene"} <= set(found)
    assert "people" not in found
    assert (found["judge_score"].value, found["judge_score"].n) == (pytest.approx(0.45), 24)
    assert found["scene_clusters"].value == 24
    assert all(f.meaning and f.unit for f in found.values())


def test_second_copies_are_counted_where_they_were_looked_for():
    some = looks(copy_similarity=lambda p, c: 0.95 if p == 0 else 0.5 if p == 1 else None)
    assert named(statistics.figures(some))["second_copies"].value == pytest.approx(1 / 6)
    blind = looks(expansion_share=None)
    assert "second_copies" not in named(statistics.figures(blind))


def test_one_scene_for_all_of_a_product_is_seen_as_such():
    one = {"background_phash": lambda p, c: f"{p:016x}", "background_simhash": lambda p, c: f"{p:064x}"}
    vectors = np.eye(16)
    same = looks(**one, scene_vector=lambda p, c: vectors[p].tolist())
    found = named(statistics.figures(same))
    assert found["duplicates_of_product"].value == pytest.approx(3 / 4)
    assert found["duplicates_of_cohort"].value == 0
    assert found["diversity_of_product"].value == pytest.approx(0)
    assert found["diversity_of_cohort"].value == pytest.approx(1)
    assert found["scene_clusters"].value == 6


def test_fallbacks_by_word_and_what_an_accepted_creative_costs():
    some = looks(
        fallback=lambda p, c: c == 0, fallback_reason=lambda p, c: "second_copy" if c == 0 else None, gpu_s=3.0
    )
    found = named(statistics.figures(some, "t: "))
    assert found["t: fallbacks"].value == 0.25
    assert found["t: fallback: second_copy"].value == 0.25
    assert found["t: gpu_s_per_accepted"].value == pytest.approx(4.0)


def test_only_originals_have_figures_and_no_scenes():
    nothing = dict.fromkeys(("background_phash", "background_simhash", "scene_vector", "sharpness", "expansion_share"))
    found = named(statistics.figures(looks(**nothing, fallback=True, fallback_reason="below_original")))
    assert found["fallbacks"].value == 1
    assert not {"scene_clusters", "diversity_of_cohort", "sharpness", "gpu_s_per_accepted"} & set(found)
    assert statistics.distances(looks(**nothing), looks(), inception=False) == []


def test_reject_words_have_shares():
    found = named(statistics.rejects(["unreadable_image", "unreadable_image", "mask_empty", None], "pictures"))
    assert [f.value for f in found.values()] == [0.5, 0.25]
    assert statistics.rejects([], "pictures") == []


def test_differences_are_paired_by_what_was_painted():
    """Products differ far more than the sets do; only pairs show it. Rows of the second stand in another order."""
    first = looks(judge_scores=lambda p, c: [0, 0.3 * p + 0.02 + 0.001 * c])
    second = looks(judge_scores=lambda p, c: [0, 0.3 * p]).take(list(range(24))[::-1])
    found = {d.name: d for d in statistics.differences(first, second)}["judge_score"]
    assert found.difference.mean == pytest.approx(0.0215, abs=1e-6)
    assert found.difference.low > 0.02
    assert found.first - found.second == pytest.approx(found.difference.mean)


def test_what_only_one_side_has_is_no_difference():
    found = statistics.differences(looks(products=3), looks(products=6))
    assert {d.n for d in found} == {12}


def test_distances_say_what_features_they_are_of():
    found = named(statistics.distances(looks(), looks(products=3), inception=False, prefix="t: "))
    assert set(found) == {"t: fid_judge_features", "t: kid_judge_features"}
    assert "not comparable" in found["t: fid_judge_features"].meaning
    assert set(named(statistics.distances(looks(), looks(), inception=True))) == {"fid_inception", "kid_inception"}
