from adbooster.caption import Blip
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
