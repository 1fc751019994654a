import pytest

from adbooster.evaluate import comparison
from tests.fake_measurements import looks


def rows_of(found, **wanted):
    return [e for e in found if all(getattr(e, k) == v for k, v in wanted.items())]


def test_every_scorer_pick_and_family_has_its_row():
    found = comparison.experiments("base, qc", looks())
    kinds = {(e.scorer, e.pick, e.family) for e in found}
    assert len(kinds) == len(found) == 2 * 2 * 3
    assert {e.pick for e in found} == {"best-of-1", "best-of-2"}
    assert [e.n for e in rows_of(found, scorer="judge", pick="best-of-1")] == [24, 12, 12]


def test_rank_chooses_and_judge_judges():
    """The judge prefers candidate 0; the creative is still the one that `rank` chose."""
    found = comparison.experiments("t", looks(judge_scores=[0.9, 0.1], rank_scores=[0.5, 0.6]))
    best = rows_of(found, scorer="judge", pick="best-of-2", family="all")[0]
    first = rows_of(found, scorer="judge", pick="best-of-1", family="all")[0]
    assert (best.creative, first.creative) == (pytest.approx(0.1), pytest.approx(0.9))


def test_best_of_one_is_the_first_candidate_whoever_would_win():
    found = comparison.experiments("t", looks(rank_scores=[0.2, 0.9], judge_scores=[0.3, 0.8]))
    first = rows_of(found, pick="best-of-1", family="all")
    assert {e.scorer: round(e.creative, 3) for e in first} == {"rank": 0.2, "judge": 0.3}


def test_uplift_and_difference_against_both_baselines():
    found = rows_of(comparison.experiments("t", looks()), scorer="judge", pick="best-of-2", family="all")[0]
    assert found.difference_neutral.mean == pytest.approx(0.25)
    assert found.uplift_neutral.mean == pytest.approx(1.25)
    assert found.uplift_contextual.mean == pytest.approx(0.5)


def test_products_without_a_scene_of_their_own_leave_only_that_baseline_out():
    some = looks(contextual_judge=lambda p, c: 0.1 if p < 3 else None)
    found = rows_of(comparison.experiments("t", some), scorer="judge", pick="best-of-2", family="all")[0]
    assert (found.n, found.contextual) == (24, pytest.approx(0.1))
    assert found.difference_contextual.mean == pytest.approx(0.35)
    none = looks(contextual_judge=None, contextual_rank=None)
    found = rows_of(comparison.experiments("t", none), scorer="judge", family="all")[0]
    assert (found.contextual, found.uplift_contextual, found.difference_contextual) == (None, None, None)


def test_a_baseline_below_zero_has_no_ratio():
    found = comparison.experiments("t", looks(neutral_judge=lambda p, c: -0.1 + 0.05 * p))
    row = rows_of(found, scorer="judge", pick="best-of-2", family="all")[0]
    assert row.uplift_neutral is None
    assert row.difference_neutral.mean > 0


def test_what_is_live_is_one_pick():
    found = comparison.experiments("live", looks(rank_scores=[0.6], judge_scores=[0.5], best=0), published=True)
    assert {e.pick for e in found} == {"published"}
