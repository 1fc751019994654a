"""Mask models with their sidecars, here and on S3; how they are named; and the trial run before a job begins."""

import json
import logging

import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.generate.config import GenerateConfig
from adbooster.measure.config import LIKE_GENERATE, MeasureConfig, revision
from adbooster.models.preprocessing import U2NET
from adbooster.models.settings import MaskNetwork
from adbooster.painting.requests import revisions
from adbooster.prepare.checks import check as check_prepare
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.plan import made_by
from adbooster.storage.mask_models import check_mask_model, mask_input, mask_model
from adbooster.storage.model_store import content_hash, pull
from adbooster.storage.objects import Root
from tests.conftest import MODELS
from tests.models.test_preprocessing import BIREFNET_FILE, ISNET_FILE, U2NET_FILE
from tests.models.tiny_onnx import write_network

AS_IT_IS, SIGMOID = MaskNetwork(), MaskNetwork(activation="sigmoid")
SMALL = BIREFNET_FILE | {"size": {"height": 64, "width": 64}}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "birefnet"
    folder.mkdir()
    return write_network(folder / "model.onnx")


def u2netp(folder):
    folder.mkdir()
    (folder / "u2netp.onnx").write_bytes((MODELS / "mask" / "u2netp.onnx").read_bytes())
    return folder / "u2netp.onnx"


def named_by(path, **more) -> list[str]:
    """What names masks, measurements and creatives that a mask model had a part in."""
    masking = {"masking": more.pop("masking")} if "masking" in more else {}
    clip = {"rank_model": str(MODELS / "rank"), "root_uri": "/root", "mask_model": str(path)} | more
    models = {"mask_model": str(path), "caption_model": str(MODELS / "caption")}
    prepare = PrepareConfig(root_uri="/root", feed_uri="/feed", **models, **masking, **more)
    measure = MeasureConfig(judge_model=str(MODELS / "judge"), **clip)
    generate = GenerateConfig(weights=str(MODELS / "outpaint"), **clip)
    return [made_by(prepare).mask, revision(measure), revisions(generate)[1]]


def test_what_was_made_before_there_were_sidecars_keeps_its_name(tmp_path):
    """Else a whole catalog would be masked and painted again."""
    path = u2netp(tmp_path / "m")
    assert mask_model(str(path), AS_IT_IS).revision == content_hash(path)
    before = named_by(path)
    assert before[0] == "6e0b914cc936b551"
    path.with_suffix(".json").write_text(json.dumps(U2NET_FILE))
    assert named_by(path) == before
    others = [named_by(path, masking={"solve_px": px})[0] for px in (100_000, 600_000, 300_000)]
    assert others[0] == before[0], "at the former default of solve_px as at today's"
    assert len(set(others)) == 3, "and any other value makes masks again"


def test_a_sidecar_and_settings_are_part_of_every_name(tmp_path):
    path = u2netp(tmp_path / "m")
    before = named_by(path)
    path.with_suffix(".json").write_text(json.dumps(ISNET_FILE | {"size": None}))
    described = named_by(path)
    path.with_suffix(".json").unlink()
    by_settings = named_by(path, mask_network={"scale": 255, "mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)})
    assert described == by_settings, "the same values, wherever they come from"
    for one, other in zip(before, described, strict=True):
        assert one != other
    assert "mask_network" in LIKE_GENERATE, "a comparison measures as the night gates"


def test_a_model_on_s3_brings_its_sidecar_to_the_node(s3_root, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_CACHE", str(tmp_path / "node"))
    s3 = Root(s3_root)
    s3.put_file(model, "bought/onnx/model.onnx")
    assert mask_model(f"{s3_root}/bought/onnx/model.onnx", AS_IT_IS).how == U2NET
    s3.write("bought/preprocessor_config.json", json.dumps(SMALL).encode())
    found = mask_model(f"{s3_root}/bought/onnx/model.onnx", SIGMOID)
    assert (found.how.scale, found.how.activation, found.how.size_px) == (255, "sigmoid", (64, 64))
    check_mask_model(f"{s3_root}/bought/onnx/model.onnx", SIGMOID, "cpu")


def test_a_pulled_folder_is_a_model_with_its_sidecar(root, s3_root, model, tmp_path, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_CACHE", str(tmp_path / "node"))
    (model.parent / "model.json").write_text(json.dumps(SMALL | {"activation": "sigmoid"}))
    for where in (root, Root(s3_root)):
        uri = f"{pull(where, str(model.parent)).uri}/model.onnx"
        check_mask_model(uri, AS_IT_IS, "cpu")
        assert mask_model(uri, AS_IT_IS).how.activation == "sigmoid"


def test_logits_are_found_before_a_photo_is_fetched(root, tiny_feed, model):
    settings = {"root_uri": root.uri, "run_id": "r1", "feed_uri": str(tiny_feed), "mask_model": str(model)}
    settings |= {"caption_model": str(MODELS / "caption"), "device": "cpu"}
    with pytest.raises(ConfigError, match="set mask_network.activation to sigmoid"):
        check_prepare(PrepareConfig(**settings))
    check_prepare(PrepareConfig(**settings, mask_network={"activation": "sigmoid"}))
    (model.parent / "model.json").write_text(json.dumps(SMALL | {"activation": "sigmoid"}))
    check_prepare(PrepareConfig(**settings))


def test_what_the_cpus_cannot_run_stops_a_job_on_cpus_and_not_one_on_gpus(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "adbooster")
    broken = tmp_path / "net.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ConfigError, match="net.onnx cannot be run: "):
        check_mask_model(str(broken), AS_IT_IS, "cpu")
    check_mask_model(str(broken), AS_IT_IS, "cuda")
    assert "cannot be tried on this machine's CPUs" in caplog.text


def test_the_size_that_a_network_is_fed_with_comes_from_its_graph_where_nothing_else_says_it(tmp_path, model):
    found = mask_input(mask_model(str(u2netp(tmp_path / "m")), AS_IT_IS))
    assert found == U2NET.model_copy(update={"size_px": (320, 320)})
    assert mask_input(mask_model(str(model), MaskNetwork(input_px=64))).size_px == (64, 64)
    model.write_bytes(b"no graph")
    with pytest.raises(ConfigError, match=r"cannot be read on this machine; set mask_network\.input_px"):
        mask_input(mask_model(str(model), AS_IT_IS))
