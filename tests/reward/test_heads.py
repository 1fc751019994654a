import json

import numpy as np
import pytest
import safetensors.numpy

from adbooster.contracts.errors import ConfigError
from adbooster.reward.features import USABILITY_FIGURES, columns, features, figures_of
from adbooster.reward.heads import ARRAYS, CARD, Head, names, read_card
from adbooster.reward.judging import Choice, UsabilityGate
from adbooster.reward.training import train_reward
from adbooster.storage.model_store import content_hash
from tests.reward.made import audience, head, unit

LAYOUT = {"x_px": 10, "y_px": 50, "width_px": 40, "height_px": 30}


def test_a_head_says_the_same_after_it_was_stored(tmp_path):
    examples, _ = audience(products=12)
    made, _ = train_reward(examples, clip_revision="0123456789abcdef")
    made.save(tmp_path)
    stored = Head.load(tmp_path, "reward", "0123456789abcdef")
    seen = features(examples.image_vectors, examples.text_vectors, examples.figures)
    assert (stored.score(seen) == made.score(seen)).all()
    assert stored.card == made.card
    again, _ = train_reward(examples, clip_revision="0123456789abcdef")
    again.save(tmp_path / "again")
    for name in (CARD, ARRAYS):
        (tmp_path / "once" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "once" / name).write_bytes((tmp_path / name).read_bytes())
    assert content_hash(tmp_path / "again") == content_hash(tmp_path / "once"), "the same examples, the same revision"


def test_a_head_of_another_kind_or_clip_is_refused_in_a_sentence(tmp_path):
    head("usability", clip_revision="0123456789abcdef").save(tmp_path)
    with pytest.raises(ConfigError, match="of the kind usability; a reward head is needed"):
        Head.load(tmp_path, "reward")
    with pytest.raises(ConfigError, match="CLIP 0123456789abcdef, and rank_model is fedcba9876543210"):
        Head.load(tmp_path, "usability", "fedcba9876543210")
    with pytest.raises(ConfigError, match="no head at"):
        Head.load(tmp_path / "nowhere")


def spoiled(card=None, arrays=None):
    return card or (lambda c: c), arrays or (lambda a: a)


@pytest.mark.parametrize(
    ("card", "arrays", "sentence"),
    [
        (lambda c: c | {"more": 1}, None, "more"),
        (lambda c: c | {"dimensions": 10**9}, None, "dimensions"),
        (lambda c: c | {"dimensions": 2}, None, "projection is|mean is"),
        (lambda c: c | {"figures": ["__class__"]}, None, "unknown figure"),
        (lambda c: c | {"reward": None}, None, "lacks its figures"),
        (lambda c: c | {"clip_revision": "../../etc"}, None, "clip_revision"),
        (None, lambda a: a | {"weights": a["weights"] * np.nan}, "weights holds a value"),
        (None, lambda a: a | {"scale": a["scale"] * 0}, "scale holds a value"),
        (None, lambda a: a | {"mean": a["mean"][:-1]}, "mean is float64"),
        (None, lambda a: a | {"mean": a["mean"].astype(np.float32)}, "mean is float32"),
        (None, lambda a: a | {"other": np.zeros(2)}, "should not have 'other'"),
        (None, lambda a: {k: v for k, v in a.items() if k != "spread"}, "'spread'"),
    ],
)
def test_files_that_are_no_heads_are_refused_in_a_sentence(tmp_path, card, arrays, sentence):
    head().save(tmp_path)
    card, arrays = spoiled(card, arrays)
    (tmp_path / CARD).write_text(json.dumps(card(json.loads((tmp_path / CARD).read_text()))))
    content = arrays(safetensors.numpy.load((tmp_path / ARRAYS).read_bytes()))
    (tmp_path / ARRAYS).write_bytes(safetensors.numpy.save(content))
    with pytest.raises(ConfigError, match=sentence):
        Head.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [(CARD, b"{"), (CARD, b"\xff"), (CARD, b"[" * 10**5), (ARRAYS, b"x" * 90)]
)
def test_bytes_that_are_no_files_of_a_head_are_refused(tmp_path, name, content):
    head().save(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be used"):
        Head.load(tmp_path)


def test_a_missing_figure_counts_as_its_mean():
    examples, _ = audience(products=12)
    made, _ = train_reward(examples)
    seen = features(examples.image_vectors, examples.text_vectors, examples.figures)[:1]
    at = names(made.card).index("clash")
    unknown, usual = seen.copy(), seen.copy()
    unknown[0, at], usual[0, at] = np.nan, made.regression.mean[at]
    assert made.score(unknown) == pytest.approx(made.score(usual))


def test_a_blend_is_in_units_of_the_clip_score():
    liked = head(weights={"clash": -2.0})
    clip = np.array([0.6, 0.5])
    figures = [figures_of(LAYOUT, (100, 100), {"clash": c}) for c in (1.0, 0.0)]
    vectors = np.ones((2, 1))
    for weight, wanted in ((0.0, clip), (1.0, [0.5 - 0.2, 0.5]), (0.5, [(0.6 + 0.3) / 2, 0.5])):
        blended, rewards = Choice(liked, weight).wanted(clip, vectors, np.ones(1), figures)
        assert blended == pytest.approx(wanted)
        assert rewards == pytest.approx(1 / (1 + np.exp([2.0, 0.0])))
    with pytest.raises(ConfigError, match="orders no candidates"):
        head("usability").blend(clip, np.zeros(2), 0.5)


def test_figures_are_shares_of_the_picture_and_what_was_measured():
    found = figures_of(LAYOUT, (100, 200), {"clash": 0.5, "scene_light_deg": 90.0}, {"people": 0.1, "unsafe": False})
    assert found["product_width"] == 0.4
    assert found["product_foot"] == 0.4
    assert (found["clash"], found["people"], found["contact_share"]) == (0.5, 0.1, None)
    seen = columns([found], USABILITY_FIGURES)
    assert list(seen) == list(USABILITY_FIGURES)
    assert np.isnan(seen["text"]).all()


def test_a_rejected_picture_says_what_it_resembles():
    vectors = dict(zip(("a", "b", "c", "d"), unit(np.array([[1.0, 0], [1, 1], [0, 1], [-1, 0]])), strict=True))
    gate = UsabilityGate(head("usability", 2, {"image_0": 10.0}, -5.0, rejected=vectors))
    pictures = unit(np.array([[1.0, 0.1], [0.1, 1]]))
    figures = [figures_of(LAYOUT, (100, 100), {})] * 2
    down, passes = gate.look(pictures, pictures, figures)
    assert (down.turned_down, down.like_rejected) == (True, ["a", "b", "c"])
    assert (passes.turned_down, passes.like_rejected) == (False, [])
    assert 0.9 < down.unusable < 1
    blunt = UsabilityGate(head("usability", 2, {"image_0": 10.0}, -5.0, threshold=None))
    assert not any(v.turned_down for v in blunt.look(pictures, pictures, figures))


def test_a_card_is_read_without_the_arrays(tmp_path):
    head().save(tmp_path)
    (tmp_path / ARRAYS).unlink()
    assert read_card(tmp_path, "reward").surely_better
