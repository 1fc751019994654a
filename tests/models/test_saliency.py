import time

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from adbooster.contracts.errors import ConfigError
from adbooster.models.preprocessing import U2NET, Preprocessing
from adbooster.models.saliency import SaliencyNet, probe
from adbooster.pictures import matting
from adbooster.pictures.matting import measure, refine
from adbooster.tiny import world
from tests.conftest import MODELS
from tests.models.test_preprocessing import BIREFNET_FILE, ISNET_FILE, U2NET_FILE, sidecar
from tests.models.tiny_onnx import FLOAT16, write_bytes_network, write_network


@pytest.fixture(scope="module")
def net():
    return SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cpu")


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
        SaliencyNet(tmp_path / "u2net.pth", "cpu")


def test_no_silent_fall_back_to_cpu():
    with pytest.raises(ConfigError, match="asked to run on cuda"):
        SaliencyNet(MODELS / "mask" / "u2netp.onnx", "cuda")


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
    """Without what the network holds a checkerboard has no solution; it prints and warns nothing either."""
    photo, sure = unlike_photos()[name], disc(500)
    started = time.process_time()
    mask, how, _ = refine(photo, sure, 20)
    assert time.process_time() - started < 5
    assert how == "matting"
    assert mask[250, 250] == 255
    assert mask[0].max() == 0
    assert iou(mask, (sure * 255).astype(np.uint8)) > 0.9
    assert np.array_equal(refine(photo, sure, 20).mask_u8, mask)
    assert capfd.readouterr().out == ""


def test_beyond_each_bound_the_edge_is_guided(monkeypatch):
    photo, true = world.packshot("mug", 256)
    probability = np.asarray(Image.fromarray(true).resize((64, 64)).resize((256, 256)), np.float32) / 255
    solved, how, _ = refine(photo, probability, 4)
    assert how == "matting"
    for bound in ("MAX_BAND_PX", "MAX_ITERATIONS", "MAX_SOLVER_S"):
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


def test_a_sidecar_with_u2_nets_values_changes_no_bit_and_another_does(net, packshot, tmp_path):
    model = tmp_path / "u2netp.onnx"
    model.write_bytes((MODELS / "mask" / "u2netp.onnx").read_bytes())
    without = net.probabilities(packshot[0])
    sidecar(tmp_path, U2NET_FILE, "u2netp.json")
    assert np.array_equal(SaliencyNet(model, "cpu").probabilities(packshot[0]), without)
    sidecar(tmp_path, {**ISNET_FILE, "size": None}, "u2netp.json")
    other = SaliencyNet(model, "cpu")
    assert other.how.mean == (0.5, 0.5, 0.5)
    assert not np.array_equal(other.probabilities(packshot[0]), without)
    sidecar(tmp_path, BIREFNET_FILE, "u2netp.json")
    with pytest.raises(ConfigError, match=r"takes 320 x 320 px .*, and 1024 x 1024 is set; correct"):
        SaliencyNet(model, "cpu")


LOGITS = Preprocessing(activation="sigmoid")


def dark_on_white() -> np.ndarray:
    picture = np.full((200, 100, 3), 255, np.uint8)
    picture[50:150, 30:70] = 0
    return picture


def test_logits_become_probabilities_by_the_activation_that_is_set(tmp_path):
    net = SaliencyNet(write_network(tmp_path / "net.onnx"), "cpu", how=LOGITS)
    probe(net)
    found = net.probabilities(dark_on_white())
    assert (found.shape, found.dtype) == ((200, 100), np.float32)
    assert found[100, 50] > 0.99
    assert found[10, 10] < 0.01


def test_logits_without_an_activation_are_refused_with_what_to_set(tmp_path):
    net = SaliencyNet(write_network(tmp_path / "net.onnx", ("logits", "map")), "cpu")
    with pytest.raises(ConfigError, match=r"from -\d.* to \d.* set mask_network\.activation to sigmoid .* logits, map"):
        probe(net)
    with pytest.raises(ConfigError, match="should hold probabilities"):
        net.probabilities(dark_on_white())


def test_a_second_sigmoid_is_refused(tmp_path):
    """It would make a product of everything: probabilities of 0.5 and more."""
    net = SaliencyNet(write_network(tmp_path / "net.onnx", ("map",)), "cpu", how=LOGITS)
    with pytest.raises(ConfigError, match=r"before the sigmoid that is set; set mask_network\.activation to none"):
        probe(net)


def test_an_output_that_is_no_number_is_refused(tmp_path):
    net = SaliencyNet(write_network(tmp_path / "net.onnx", gain=float("nan")), "cpu", how=LOGITS)
    with pytest.raises(ConfigError, match="from nan to nan"):
        probe(net)


@pytest.mark.parametrize("output", [1, -1, "map", "1"])
def test_the_output_is_named_or_counted(tmp_path, output):
    model = write_network(tmp_path / "net.onnx", ("features", "map"))
    net = SaliencyNet(model, "cpu", how=Preprocessing(output=output))
    probe(net)
    assert net.output == "map"


def test_an_output_that_is_not_there_or_no_map_is_refused(tmp_path):
    model = write_network(tmp_path / "net.onnx", ("features", "map"))
    for missing in (2, "mask"):
        with pytest.raises(ConfigError, match=f"no output {missing!r}; its outputs are features, map"):
            SaliencyNet(model, "cpu", how=Preprocessing(output=missing))
    with pytest.raises(ConfigError, match=r"features of .* is \[1, 3, 64, 64\] and should be one map"):
        probe(SaliencyNet(model, "cpu"))


def test_half_precision_is_given_to_a_graph_that_takes_it(tmp_path):
    half, full = (
        SaliencyNet(write_network(tmp_path / f"{i}.onnx", **more), "cpu", how=LOGITS)
        for i, more in enumerate(({"kind": FLOAT16}, {}))
    )
    probe(half)
    found = half.probabilities(dark_on_white())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, full.probabilities(dark_on_white()), atol=0.01)


def test_a_graph_of_any_size_must_be_told_its_size_and_takes_batches(tmp_path):
    model = write_network(tmp_path / "net.onnx", ("map",), ("batch", 3, "height", "width"))
    with pytest.raises(ConfigError, match=r"set mask_network\.input_px, or `size` in a file net\.json beside it"):
        SaliencyNet(model, "cpu")
    net = SaliencyNet(model, "cpu", how=U2NET.model_copy(update={"size_px": (96, 32)}))
    pictures = [dark_on_white(), dark_on_white()[:90, :50], np.full((20, 30, 3), 90, np.uint8)]
    for one, together in zip(pictures, net.probabilities_of(pictures), strict=True):
        assert together.shape == one.shape[:2]
        np.testing.assert_allclose(net.probabilities(one), together, atol=1e-6)


def test_a_graph_that_takes_one_picture_gets_one_at_a_time(net, packshot):
    pictures = [packshot[0], dark_on_white()]
    for one, together in zip(pictures, net.probabilities_of(pictures), strict=True):
        assert np.array_equal(net.probabilities(one), together)


def test_a_graph_that_takes_no_pictures_as_floats_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"takes tensor\(uint8\) \[1, 3, 8, 8\] and should take RGB as floats"):
        SaliencyNet(write_bytes_network(tmp_path / "net.onnx"), "cpu")
