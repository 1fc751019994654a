import time

import numpy as np
import pytest
from PIL import Image

from adbooster.contracts.errors import ConfigError
from adbooster.models.u2net import U2Net
from adbooster.pictures.matting import measure, refine
from adbooster.tiny import world
from tests.conftest import MODELS


@pytest.fixture(scope="module")
def net():
    return U2Net(MODELS / "mask" / "u2netp.onnx", "cpu")


def iou(mask, true):
    return ((mask > 127) & (true > 127)).sum() / ((mask > 127) | (true > 127)).sum()


def test_a_packshot_is_cut_at_its_edge(net):
    photo, true = world.packshot("teapot", 512)
    refined = net.mask(photo)
    rough = net.probabilities(photo)
    assert iou(refined, true) > 0.98
    assert np.abs(refined / 255.0 - true / 255.0).mean() < 0.5 * np.abs(rough - true / 255.0).mean()


def test_no_product_is_an_empty_mask(net):
    """A per-image stretch would make a full one, and NaN of a constant picture."""
    for level in (0, 128, 255):
        mask = net.mask(np.full((200, 300, 3), level, np.uint8))
        assert mask.shape == (200, 300)
        assert (mask > 127).mean() < 0.01


def test_refine_without_a_sure_product_keeps_the_map():
    probability = np.full((50, 50), 0.4, np.float32)
    assert (refine(np.zeros((50, 50, 3), np.uint8), probability, 2) == 102).all()


def test_only_onnx(tmp_path):
    (tmp_path / "u2net.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"not an \.onnx file"):
        U2Net(tmp_path / "u2net.pth", "cpu")


def test_no_silent_fall_back_to_cpu():
    with pytest.raises(ConfigError, match="asked to run on cuda"):
        U2Net(MODELS / "mask" / "u2netp.onnx", "cuda")


def test_a_large_photo_is_matted_small_and_cut_at_its_edge(net):
    """16 megapixels solved at full size take minutes and gigabytes."""
    small, true = (
        Image.fromarray(a).resize((3000, 3000), Image.Resampling.BICUBIC) for a in world.packshot("mug", 512)
    )
    started = time.monotonic()
    mask = net.mask(np.asarray(small))
    assert time.monotonic() - started < 20
    assert iou(mask, np.asarray(true)) > 0.98
    assert mask[:100].max() == 0
    assert np.abs(mask / 255.0 - np.asarray(true) / 255.0).mean() < 0.003


def test_measures_of_a_mask():
    photo = np.full((100, 100, 3), 200, np.uint8)
    mask = np.zeros((100, 100), np.uint8)
    mask[10:30, 10:30] = mask[50:70, 50:70] = 255
    mask[90, 90] = 255  # a speck is no piece
    plain = measure(photo, mask)
    assert (plain["mask_pieces"], plain["mask_border_share"], plain["outside_deviation"]) == (2, 0, 0)
    assert plain["mask_area_share"] == pytest.approx(0.0801)
    photo[:50] = 20
    mask[0] = 255
    scene = measure(photo, mask)
    assert scene["outside_deviation"] > 80
    assert scene["mask_border_share"] == pytest.approx(0.25, abs=0.01)
