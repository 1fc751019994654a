import time

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adbooster.contracts.errors import ConfigError
from adbooster.models.u2net import U2Net
from adbooster.pictures import matting
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
    refined, how, _ = net.mask(photo)
    rough = net.probabilities(photo)
    assert how == "matting"
    assert iou(refined, true) > 0.98
    assert np.abs(refined / 255.0 - true / 255.0).mean() < 0.5 * np.abs(rough - true / 255.0).mean()


def test_no_product_is_an_empty_mask(net):
    """A per-image stretch would make a full one, and NaN of a constant picture."""
    for level in (0, 128, 255):
        mask, how, _ = net.mask(np.full((200, 300, 3), level, np.uint8))
        assert mask.shape == (200, 300)
        assert (mask > 127).mean() < 0.01
        assert how == "network"


def test_refine_without_a_sure_product_keeps_the_map():
    probability = np.full((50, 50), 0.4, np.float32)
    mask, how, _ = refine(np.zeros((50, 50, 3), np.uint8), probability, 2)
    assert (mask == 102).all()
    assert how == "network"


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
    mask = net.mask(np.asarray(small)).mask_u8
    assert time.monotonic() - started < 20
    assert iou(mask, np.asarray(true)) > 0.98
    assert mask[:100].max() == 0
    assert np.abs(mask / 255.0 - np.asarray(true) / 255.0).mean() < 0.003


def disc(side_px: int, soft_px: float = 40) -> np.ndarray:
    """Probabilities of a soft disc in the middle."""
    away = np.hypot(*(np.indices((side_px, side_px)) - side_px / 2))
    return np.clip((side_px / 3 - away) / soft_px + 0.5, 0, 1).astype(np.float32)


def unlike_photos() -> dict[str, np.ndarray]:
    at = np.indices((500, 500))
    coarse = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    grey = {"checkerboard": (at // 8).sum(0) % 2 * 255, "stripes": at[0] // 3 % 2 * 255, "flat": at[0] * 0 + 128}
    pictures = {name: np.repeat(values.astype(np.uint8)[..., None], 3, 2) for name, values in grey.items()}
    return pictures | {
        "noise": np.random.default_rng(1).integers(0, 256, (500, 500, 3), np.uint8),
        "posterized": np.asarray(Image.fromarray(coarse).resize((500, 500))) // 64 * 64,
    }


@pytest.mark.parametrize("name", ["checkerboard", "stripes", "flat", "noise", "posterized"])
@pytest.mark.filterwarnings("error")
def test_matting_ends_on_anything_and_says_how(name, capfd):
    """The solver took minutes on a checkerboard and raised then; it prints and warns nothing either."""
    photo, sure = unlike_photos()[name], disc(500)
    started = time.monotonic()
    mask, how, _ = refine(photo, sure, 20)
    assert time.monotonic() - started < 45
    assert how == {"checkerboard": "guided", "stripes": "guided", "flat": "matting"}.get(name, how)
    assert mask[250, 250] == 255
    assert mask[0].max() == 0
    assert iou(mask, (sure * 255).astype(np.uint8)) > 0.75
    if how == "guided":
        assert np.array_equal(refine(photo, sure, 20).mask_u8, mask)
    assert capfd.readouterr().out == ""


def test_beyond_each_bound_the_edge_is_guided(monkeypatch):
    photo, true = world.packshot("mug", 256)
    probability = np.asarray(Image.fromarray(true).resize((64, 64)).resize((256, 256)), np.float32) / 255
    solved, how, _ = refine(photo, probability, 4)
    assert how == "matting"
    for bound in ("MAX_BAND_PX", "MAX_ITERATIONS", "MAX_BAND_PX_ITERATIONS", "MAX_SOLVER_S", "_FILL"):
        with monkeypatch.context() as patched:
            patched.setattr(matting, bound, 1 if bound != "MAX_SOLVER_S" else -1)
            guided, how, _ = refine(photo, probability, 4)
        assert how == "guided", bound
        assert iou(guided, true) > 0.97
        assert not np.array_equal(guided, solved)


def test_the_band_is_as_many_steps_of_erosion_and_dilation():
    cross, there = ndimage.generate_binary_structure(2, 1), np.random.default_rng(0).random((60, 90)) > 0.002
    eroded = ndimage.binary_erosion(there, cross, iterations=5)
    assert np.array_equal(matting._distance(~there, border=True) > 5, eroded)
    dilated = ndimage.binary_dilation(~there, cross, iterations=5)
    assert np.array_equal(matting._distance(~there, border=False) <= 5, dilated)
    assert (matting._distance(np.zeros((2, 2), bool), border=False) > 10**6).all()


def test_a_long_strip_has_a_band_at_once(net):
    started = time.monotonic()
    mask = net.mask(np.random.default_rng(0).integers(0, 256, (60_000, 20, 3), np.uint8)).mask_u8
    assert time.monotonic() - started < 20
    assert mask.shape == (60_000, 20)


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
