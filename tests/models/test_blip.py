import json

import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.models.blip import Blip
from adbooster.models.files import caption_input
from adbooster.models.settings import Captions
from adbooster.tiny import world
from tests.conftest import MODELS


def test_captions_name_product_and_scene_alike_in_any_batch():
    blip = Blip(MODELS / "caption", "cpu", 2)
    shown = [("watch", "winter"), ("backpack", "halloween"), ("mug", "sailing"), ("watch", None)]
    pictures = [(world.compose(s, p, 256, 9) if s else world.packshot(p, 256))[0] for p, s in shown]
    together = blip.captions(pictures)
    assert together == [blip.captions([picture])[0] for picture in pictures]
    named = [world.PRODUCTS[p].name in text for text, (p, _) in zip(together, shown, strict=True)]
    assert sum(named) >= 3
    assert world.WHITE in together[3]
    assert len(set(together)) == 4


def test_prefix_length_and_repetition_are_settings():
    blip = Blip(MODELS / "caption", "cpu", 2)
    picture = [world.packshot("watch", 256)[0]]
    assert len(blip.captions(picture, Captions(max_new_tokens=2))[0].split()) <= 2
    whole = blip.captions(picture)[0]
    prefix = " ".join(whole.split()[:2])
    assert not blip.captions(picture, Captions(prefix=prefix))[0].startswith(prefix)
    said = blip.captions(picture, Captions(no_repeat_ngram_size=1, max_new_tokens=12))[0].split()
    assert len(said) == len(set(said))


def test_pictures_are_of_the_size_that_the_folder_says(tmp_path):
    assert caption_input(MODELS / "caption") == (96, 96)
    assert caption_input(tmp_path) == (384, 384), "BLIP's own"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 320}}))
    assert caption_input(tmp_path) == (224, 320)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": "large"}}))
    with pytest.raises(ConfigError, match="should give size as height and width in pixels"):
        caption_input(tmp_path)
