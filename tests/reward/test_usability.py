from dataclasses import replace

import numpy as np
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.evaluation import Interval
from adbooster.reward.config import UsabilityTraining
from adbooster.reward.features import USABILITY_FIGURES, features
from adbooster.reward.usability import Verdicts, _why_not, threshold, train_usability
from tests.reward.made import unit


def verdicts(clear: float = 6.0, products: int = 25, seed: int = 0) -> Verdicts:
    """`clear`: how far what people reject lies apart; 0: they reject by chance."""
    rng = np.random.default_rng(seed)
    n, side = products * 8, 12
    bad = rng.random(n) < 0.4
    images = unit(rng.normal(size=(n, side)) + np.where(bad, clear, 0.0)[:, None] * unit(np.ones(side)))
    figures = {name: rng.random(n) for name in USABILITY_FIGURES} | {
        "clash": np.where(bad, 0.7, 0.3) + rng.normal(size=n)
    }
    groups = np.repeat(np.arange(products), 8).astype(str)
    ids = np.array([f"{i:016x}" for i in range(n)])
    scenes = unit(rng.normal(size=(n, side)))
    cohorts = np.tile(np.arange(8), products).astype(str)
    return Verdicts(images, scenes, figures, bad.astype(float), np.ones(n), groups, cohorts, ids)


def test_what_people_reject_is_found_on_products_that_were_held_out():
    given = verdicts()
    head, figures = train_usability(given)
    assert figures.precision.mean >= 0.9
    assert figures.recall.mean > 0.6
    assert figures.threshold is not None
    new = verdicts(seed=1)
    flagged = head.score(features(new.image_vectors, new.scene_vectors, new.figures)) >= figures.threshold
    assert new.unusable[flagged].mean() >= 0.85
    assert set(head.card.rejected) <= set(given.creative_ids[given.unusable == 1])
    assert len(head.card.rejected) == len(head.rejected_vectors) == given.unusable.sum()


def test_a_gate_that_is_not_right_often_enough_is_not_switched_on_and_says_why():
    for seed in range(3):
        _, figures = train_usability(verdicts(clear=0.0, seed=seed))
        assert figures.threshold is None
        assert "90%" in figures.why


def test_a_gate_that_is_right_by_luck_is_seldom_switched_on():
    """People reject three in four whatever they see: no threshold is right in nine of ten."""
    on = 0
    for seed in range(6):
        given, rng = verdicts(clear=0.0, products=20, seed=seed), np.random.default_rng(seed)
        bad = (rng.random(len(given.unusable)) < 0.75).astype(float)
        figures = {name: rng.random(len(bad)) for name in given.figures}
        on += train_usability(replace(given, unusable=bad, figures=figures))[1].threshold is not None
    assert on <= 1


def test_few_rejections_say_nothing_of_a_gate():
    found = Interval(mean=1.0, low=0.7, high=1.0)
    assert "rejects 9 pictures" in _why_not(0.5, found, 9, UsabilityTraining())
    assert not _why_not(0.5, found, 10, UsabilityTraining())


def test_scenes_that_people_rejected_tell_nothing_of_new_ones():
    """Every second cohort's pictures are all rejected, and recognised; of a cohort that it has not seen the gate knows nothing."""
    given = verdicts(clear=0.0)
    cohort = given.cohorts.astype(int)
    rng = np.random.default_rng(0)
    scenes = unit(rng.normal(size=(8, 12)))[cohort]
    images = unit(scenes + 0.2 * rng.normal(size=scenes.shape))
    bad = (cohort % 2).astype(float)
    figures = {name: rng.random(len(bad)) for name in given.figures}
    _, found = train_usability(
        replace(given, image_vectors=images, scene_vectors=scenes, figures=figures, unusable=bad)
    )
    assert found.threshold is None
    assert found.auc < 0.75


def test_the_precision_that_is_said_is_not_that_of_the_pictures_it_was_tuned_on():
    """Best of many thresholds on 80 pictures of chance alone would look right; on other parts it is not."""
    rng = np.random.default_rng(0)
    found = [threshold(rng.random(80), rng.random(80) < 0.75, 0.9) for _ in range(40)]
    assert sum(f is not None for f in found) >= 5
    assert threshold(np.array([0.9] * 10 + [0.1] * 10), np.array([True] * 10 + [False] * 10), 0.9) == 0.9
    assert threshold(np.array([0.5] * 20), np.array([True] * 10 + [False] * 10), 0.9) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_verdicts_of_one_kind_are_one_sentence(share):
    given = verdicts()
    with pytest.raises(ConfigError, match="people rejected .* and kept .* 30 of each"):
        train_usability(replace(given, unusable=np.full(len(given.unusable), share)))


def test_only_so_many_rejected_examples_are_kept():
    head, _ = train_usability(verdicts(), UsabilityTraining(examples=7))
    assert len(head.card.rejected) == len(head.rejected_vectors) == 7
