import json

import numpy as np
import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.models.clip import Clip
from adbooster.tiny import world
from tests.conftest import MODELS


@pytest.mark.parametrize("name", ["rank", "judge"])
def test_pictures_find_their_texts(name):
    ranker = Clip(MODELS / name, "cpu", 2)
    labels = [("watch", "winter"), ("backpack", "halloween"), ("mug", "sailing"), ("coat", "birthday")]
    images = ranker.embed_images([world.compose(s, p, 256, 11)[0] for p, s in labels])
    texts = ranker.embed_texts([world.caption(p, s) for p, s in labels])
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert ((images @ texts.T).argmax(1) == np.arange(4)).all()


def test_a_picture_scores_the_same_in_any_batch():
    ranker = Clip(MODELS / "rank", "cpu", 2)
    pictures = [world.compose("summer", p, 200, 3)[0] for p in ("watch", "mug", "coat")]
    alone = np.concatenate([ranker.embed_images([p]) for p in pictures])
    assert np.abs(ranker.embed_images(pictures) - alone).max() < 1e-5


def test_ranker_and_judge_are_different_models():
    configs = [json.loads((MODELS / n / "open_clip_config.json").read_text())["model_cfg"] for n in ("rank", "judge")]
    assert configs[0]["vision_cfg"] != configs[1]["vision_cfg"]


def test_a_folder_that_is_no_clip(tmp_path):
    with pytest.raises(ConfigError, match=r"open_clip_config\.json"):
        Clip(tmp_path, "cpu")
