"""What people's clicks and verdicts have taught decides among candidates, beside CLIP and the gates."""

import json

import numpy as np
import pytest

from adbooster.contracts.errors import CanaryRefused, ConfigError
from adbooster.painting.checks import check_heads
from adbooster.painting.requests import revisions
from adbooster.storage.model_store import content_hash
from tests.conftest import MODELS
from tests.generate.test_generate import RECIPE, Stub, config, painter
from tests.painting.test_painter import Verdicts, one
from tests.reward.made import head

CLIP = content_hash(MODELS / "rank")


def stored(tmp_path, *args, **values):
    folder = tmp_path / f"head-{len(list(tmp_path.iterdir()))}"
    head(*args, **{"clip_revision": CLIP} | values).save(folder)
    return str(folder)


def painted(root, own=0.1, shown="", recipe=RECIPE, **settings):
    stage = painter(root, recipe=recipe | {"max_rounds": 1}, **settings)
    stage.painter.ranker, stage.painter.inspector = Stub([0.4, 0.9], own), Verdicts()
    stage.painter.shown_up_to = shown
    rows = stage.painter(stage.placer(one(root)))
    return rows.to_pylist()[0], stage.finisher(rows).to_pylist()


def test_a_learned_score_decides_by_its_weight_and_clip_keeps_its_floor(stocked, tmp_path):
    """The reward likes what CLIP does not: it wins at a high weight, but never below the product's own pictures."""
    reward = stored(tmp_path, weights={"cosine": -8.0})
    for weight, own, score in ((1e-6, 0.1, 0.9), (1.0, 0.1, 0.4), (1.0, 0.5, 0.9)):
        (creative,) = painted(stocked, own, score="blend", reward=reward, reward_weight=weight)[1]
        assert creative["clip_score"] == pytest.approx(score)
        assert creative["reward"] == pytest.approx(1 / (1 + np.exp(8 * score)), rel=1e-3)
        assert creative["margin"] == pytest.approx(score - own)
        assert creative["unusable"] is None


def test_of_two_creatives_the_one_that_is_liked_better_comes_first(stocked, tmp_path):
    reward = stored(tmp_path, weights={"cosine": -8.0})
    both = {"keep": 2, "diversity": 0.0}
    ranked = painted(stocked, score="blend", reward=reward, reward_weight=1.0, recipe=RECIPE | both)[1]
    assert [round(c["clip_score"], 1) for c in ranked] == [0.4, 0.9]
    assert [round(c["clip_score"], 1) for c in painted(stocked, recipe=RECIPE | both)[1]] == [0.9, 0.4]


def test_what_people_could_not_use_makes_room_for_the_next_and_says_what_it_resembles(stocked, tmp_path):
    rejected = {f"{i:016x}": np.array([float(i)]) for i in (1, 2, 3)}
    gate = stored(tmp_path, "usability", weights={"image_0": 20.0}, intercept=-14.0, rejected=rejected)
    request, (creative,) = painted(stocked, usability=gate, shown="g")
    assert creative["candidate_rejects"] == ["unusable"]
    assert creative["clip_score"] == pytest.approx(0.4)
    assert creative["unusable"] == pytest.approx(1 / (1 + np.exp(14 - 8)), rel=1e-3)
    down = next(s for s in request["shown"] if s["word"] == "unusable")
    figures = json.loads(down["figures"])
    assert figures["like_rejected"] == [f"{i:016x}" for i in (3, 2, 1)]
    assert figures["unusable"] > 0.9


def test_recipes_keep_their_names_until_a_head_decides(stocked, tmp_path):
    reward, other = stored(tmp_path), stored(tmp_path, weights={"clash": -1.0})
    gate = stored(tmp_path, "usability")
    name = {
        k: revisions(config(stocked, **v))[1]
        for k, v in {
            "plain": {},
            "given": {"reward": reward, "reward_weight": 0.9},
            "blend": {"score": "blend", "reward": reward},
            "weight": {"score": "blend", "reward": reward, "reward_weight": 0.9},
            "other": {"score": "blend", "reward": other},
            "gate": {"usability": gate},
        }.items()
    }
    assert name["given"] == name["plain"]
    assert len(set(name.values())) == len(name) - 1


def test_heads_that_cannot_help_are_refused_in_a_sentence(stocked, tmp_path):
    for head_of, settings, error, sentence in (
        (None, {"score": "blend"}, ConfigError, "needs `reward`"),
        ({"better": False}, {"score": "blend"}, CanaryRefused, "not surely better than CLIP .*AUC"),
        ({"clip_revision": "0" * 16}, {"score": "blend"}, ConfigError, "CLIP 0000"),
        ({"kind": "usability"}, {"score": "blend"}, ConfigError, "of the kind usability"),
        ({"kind": "usability", "threshold": None}, {}, ConfigError, "no threshold and is not used: at no"),
        ({}, {}, ConfigError, "of the kind reward"),
    ):
        name = "reward" if settings else "usability"
        uri = stored(tmp_path, **head_of) if head_of is not None else ""
        with pytest.raises(error, match=sentence):
            check_heads(config(stocked, **settings | {name: uri}))
    check_heads(config(stocked, score="blend", reward=stored(tmp_path)))
    check_heads(config(stocked, usability=stored(tmp_path, "usability")))
