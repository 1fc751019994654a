import json

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from adbooster.contracts.errors import ConfigError
from adbooster.models.clip import Clip
from adbooster.models.clip_input import ClipInput, clip_pixels
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


PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "fill_color": 0}


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(300, 200), (217, 431), (80, 80), (81, 90), (60, 50)])
def test_pixels_are_those_of_open_clips_own_transform(mode, size):
    picture = world.compose("summer", "mug", 512, 3)[0][: size[0], : size[1]]
    theirs = image_transform(80, False, PLAIN["mean"], PLAIN["std"], resize_mode=mode)(Image.fromarray(picture))
    ours = clip_pixels(picture, ClipInput(80, 80, resize_mode=mode, **PLAIN))
    assert np.array_equal(ours, (theirs.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pictures_scaled_on_the_device_score_as_those_scaled_by_open_clip(mode):
    """The same pixels give the same vector; pictures that PyTorch scales differ in the third digit of their score."""
    ranker = Clip(MODELS / "rank", "cpu", 2)
    ranker.input = ranker.input._replace(resize_mode=mode)
    own = image_transform(80, False, ranker.input.mean, ranker.input.std, resize_mode=mode)
    ranker.preprocess = own
    pictures = [
        world.compose(s, p, 256, 7)[0][:, :200] for s in list(world.SCENES)[:4] for p in ("watch", "mug", "coat")
    ]
    texts = ranker.embed_texts([scene.name for scene in world.SCENES.values()])
    theirs, ours = ranker.embed_images(pictures), ranker.embed_pixels(np.stack(pictures))
    assert np.abs((theirs - ours) @ texts.T).max() < 0.003
    exact = ranker.embed_pixels(np.stack([clip_pixels(p, ranker.input) for p in pictures]))
    assert np.abs(theirs - exact).max() < 1e-5
