import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from adbooster.contracts.errors import ConfigError
from adbooster.models.preprocessing import (
    U2NET,
    Preprocessing,
    prepare,
    read_preprocessing,
    revision,
    sidecar_names,
    sidecar_of,
)
from adbooster.models.settings import MaskNetwork

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
U2NET_FILE = IMAGENET | {"size": {"height": 320, "width": 320}, "scale": "maximum"}
ISNET_FILE = {"size": {"height": 1024, "width": 1024}, "image_mean": [0.5] * 3, "image_std": [1, 1, 1], "scale": 255}
BIREFNET_FILE = IMAGENET | {
    "size": {"width": 1024, "height": 1024},
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 0.00392156862745098,
    "resample": 2,
    "feature_extractor_type": "ImageFeatureExtractor",
    "image_processor_type": "ViTImageProcessor",
}


def sidecar(folder, values, name="net.json"):
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder / name


@pytest.fixture
def picture():
    """Levels 0 to 200, none of them 255."""
    return np.random.default_rng(0).integers(0, 201, (40, 30, 3), np.uint8)


def test_pictures_are_fed_as_each_networks_authors_do(tmp_path, picture):
    for values, divisor, mean, std, side in (
        (U2NET_FILE, None, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 320),
        (ISNET_FILE, 255, [0.5, 0.5, 0.5], [1, 1, 1], 1024),
        (BIREFNET_FILE, 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1024),
    ):
        how = read_preprocessing(sidecar(tmp_path, values))
        assert how.size_px == (side, side)
        small = np.asarray(Image.fromarray(picture).resize((48, 64), Image.Resampling.BILINEAR), np.float64)
        wanted = (small / (divisor or small.max()) - mean) / np.array(std)
        x_CHW = prepare(picture, how, (64, 48))
        assert x_CHW.dtype == np.float32
        np.testing.assert_allclose(x_CHW, wanted.transpose(2, 0, 1), atol=1e-5)


def test_a_black_picture_has_a_maximum_too():
    x_CHW = prepare(np.zeros((8, 8, 3), np.uint8), U2NET, (8, 8))
    np.testing.assert_allclose(x_CHW[:, 0, 0], -np.array(U2NET.mean) / np.array(U2NET.std), rtol=1e-5)


def test_without_a_sidecar_a_network_is_fed_as_u2_net_is(tmp_path):
    assert read_preprocessing(None) == U2NET
    assert sidecar_of(tmp_path / "net.onnx") is None


def test_settings_stand_above_the_sidecar(tmp_path):
    path = sidecar(tmp_path, BIREFNET_FILE)
    given = MaskNetwork(activation="sigmoid", input_px=512, output="-1")
    how, plain = read_preprocessing(path, given), read_preprocessing(path)
    assert (how.activation, how.size_px, how.output) == ("sigmoid", (512, 512), -1)
    assert (how.mean, how.std, how.scale) == (plain.mean, plain.std, 255)


def test_the_file_named_like_the_model_comes_first_and_the_hubs_lies_above_its_onnx_folder(tmp_path):
    folder = tmp_path / "onnx"
    folder.mkdir()
    above = sidecar(tmp_path, BIREFNET_FILE, "preprocessor_config.json")
    assert sidecar_of(folder / "net.onnx") == above
    assert sidecar_of(tmp_path / "net.onnx") == above
    own = sidecar(folder, ISNET_FILE)
    assert sidecar_of(folder / "net.onnx") == own
    assert sidecar_of(folder / "net_fp16.onnx") == above
    assert sidecar_names("bucket/shop/net.onnx") == ["bucket/shop/net.json", "bucket/shop/preprocessor_config.json"]


def test_what_a_hubs_file_turns_off_is_off(tmp_path):
    raw = read_preprocessing(sidecar(tmp_path, {"do_normalize": False, "do_rescale": False}))
    assert (raw.mean, raw.std, raw.scale) == ((0, 0, 0), (1, 1, 1), 1)


def test_other_keys_are_for_others_in_a_hubs_file_and_a_mistake_in_ours(tmp_path):
    values = BIREFNET_FILE | {"activaton": "sigmoid"}
    assert read_preprocessing(sidecar(tmp_path, values, "preprocessor_config.json")).scale == 255
    with pytest.raises(
        ConfigError, match="net.json of the mask model has the unknown key 'activaton'; known are size,"
    ):
        read_preprocessing(sidecar(tmp_path, values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("{", "cannot be read as a JSON object"),
        ("[1]", "cannot be read as a JSON object"),
        ("[" * 100_000, "cannot be read as a JSON object"),
        ("\xff", "cannot be read as a JSON object"),
        ({"image_mean": [0, 0, 0]}, "no image_mean or no image_std; give three numbers each"),
        (IMAGENET | {"image_std": [1, 0, 1]}, "image_std: Input should be greater than 0, and it is 0"),
        (IMAGENET | {"size": {"shortest_edge": 1024}}, "size: Field required"),
        (IMAGENET | {"do_center_crop": True}, "do_center_crop: Input should be False, and it is True"),
        (IMAGENET | {"do_resize": False}, "do_resize: Input should be True"),
        (IMAGENET | {"activation": "softmax"}, "activation: Input should be 'none' or 'sigmoid', and it is softmax"),
    ],
)
def test_a_sidecar_that_cannot_be_followed_is_one_sentence(tmp_path, values, said):
    path = sidecar(tmp_path, values)
    if values == "\xff":
        path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=said) as refused:
        read_preprocessing(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_another_way_of_feeding_changes_a_models_name(tmp_path):
    """Masks of models without a sidecar keep their names, and so are not made again."""
    as_u2net = read_preprocessing(sidecar(tmp_path, U2NET_FILE))
    assert revision("0123", U2NET) == revision("0123", as_u2net) == "0123"
    others = [U2NET.model_copy(update={n: v}) for n, v in (("size_px", (512, 512)), ("scale", 255.0), ("output", 1))]
    others += [read_preprocessing(None, MaskNetwork(activation="sigmoid"))]
    names = {revision("0123", how) for how in others} | {revision("4567", others[0]), "0123"}
    assert len(names) == 6
    assert all(len(name) == 16 for name in names - {"0123"})
    assert revision("0123", Preprocessing(scale=255)) == revision(
        "0123", read_preprocessing(None, MaskNetwork(scale=255))
    )


def test_settings_are_checked():
    for wrong in ({"std": (1, 1, 0)}, {"scale": "largest"}, {"activation": "tanh"}, {"input_px": 1}, {"mean": (0, 0)}):
        with pytest.raises(ValidationError):
            MaskNetwork(**wrong)
