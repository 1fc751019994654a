import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.measure import subjects
from adbooster.measure.checks import check_models
from adbooster.measure.config import MeasureConfig
from adbooster.measure.stages import Evaluator
from adbooster.pictures import compositing, cutouts, images, layout
from adbooster.storage import tables
from adbooster.tiny import world
from tests.conftest import MODELS, row


def judging(root, **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": "r",
        "rank_model": str(MODELS / "rank"),
        "judge_model": str(MODELS / "judge"),
        "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
        "device": "cpu",
        "threads": 2,
    }
    return MeasureConfig(**settings | changes)


@pytest.fixture
def halloween(scenic, packshot):
    """(picture uint8 [256,256,3], cutout, box): the product of `scenic` in the halloween scene."""
    cutout = cutouts.cut(*packshot)
    factor = 120 / max(cutout.alpha.shape)
    high, wide = (round(n * factor) for n in cutout.alpha.shape)
    box = layout.Box(70, 120, wide, high)
    scene, _ = world.compose("halloween", "teapot", 256, 7)
    return (
        compositing.compose(np.asarray(images.resize(images.resize(scene, 16, 16), 256, 256)), cutout, box),
        cutout,
        box,
    )


def creative(root, picture, box, **changes):
    """A row of schema.CREATIVES of a stored picture."""
    values = {
        "creative_id": f"cr{abs(hash(picture.tobytes())) % 10**6}",
        "product_id": "P1",
        "cohort_id": "c1",
        "placement": "square",
        "rank": 0,
        "uri": root.put(images.encode_lossless(picture), "webp"),
        "layout": vars(box) if box else None,
        "fallback": False,
        "run_id": "n",
        "recipe_id": "x",
    }
    return row(schema.CREATIVES, **values | changes)


def look(root, *creatives, stage=None, **changes):
    rows = pa.Table.from_pylist(list(creatives), schema.CREATIVES)
    asked = subjects.pictures_to_measure(rows, subjects.own_pictures(root), subjects.cohort_texts(root), "models")
    return Evaluator(root, judging(root, **changes))(asked).to_pylist()


def test_a_products_own_pictures_are_kept_apart_by_their_ground(scenic):
    found = subjects.own_pictures(scenic)["P1"]
    assert found["photo_uri"] in found["neutral_uris"]
    assert len(found["neutral_uris"]) == 1
    assert len(found["contextual_uris"]) == 2


def test_a_stored_creative_is_scored_and_measured(scenic, halloween):
    picture, _, box = halloween
    found = look(scenic, creative(scenic, picture, box))[0]
    assert (found["product_max_diff"], found["psnr_db"]) == (0, 99.0)
    assert len(found["rank_scores"]) == len(found["judge_scores"]) == 1
    assert found["rank_scores"] != found["judge_scores"]
    assert found["text"] == "teapot, a halloween night"
    assert 0 <= found["expansion_share"] < 0.5
    assert abs(np.linalg.norm(found["scene_vector"]) - 1) < 1e-3
    assert found["sharpness"] > 0
    assert found["people"] is not None
    assert found["reject"] is None


def test_an_altered_product_is_found_in_the_stored_file(scenic, halloween):
    picture, _, box = halloween
    altered = picture.copy()
    altered[box.slices] = np.where(altered[box.slices] > 128, altered[box.slices] - 10, altered[box.slices] + 10)
    found = look(scenic, creative(scenic, altered, box))[0]
    assert found["product_max_diff"] == 10
    assert found["psnr_db"] == pytest.approx(28.1, abs=0.1)


def test_a_grown_product_is_found_by_segmenting_again(scenic, halloween):
    picture, cutout, box = halloween
    wider = layout.Box(box.x_px - 40, box.y_px - 70, round(box.width_px * 1.6), round(box.height_px * 1.6))
    grown = compositing.compose(picture, cutout, wider)
    found = look(scenic, creative(scenic, picture, box), creative(scenic, grown, box))
    assert found[1]["expansion_share"] > found[0]["expansion_share"] + 0.5


def test_a_second_product_is_found(scenic, halloween):
    picture, cutout, box = halloween
    twice = compositing.compose(picture, cutout, layout.Box(5, 10, box.width_px, box.height_px))
    found = look(scenic, creative(scenic, picture, box), creative(scenic, twice, box))
    assert found[0]["copy_similarity"] is None
    assert found[1]["copy_similarity"] > 0.7


def test_baselines_are_the_best_of_the_products_own(scenic, halloween):
    """Of two scenes of its own the one that `rank` finds nearer to the text stands for the catalog."""
    picture, _, box = halloween
    spooky, snowy = look(
        scenic, creative(scenic, picture, box), creative(scenic, picture, box, creative_id="b", cohort_id="c2")
    )
    assert spooky["contextual_rank"] > spooky["neutral_rank"]
    assert snowy["contextual_rank"] > snowy["neutral_rank"]


def test_a_product_with_scenes_only_is_put_on_white(scenic, halloween):
    samples = tables.read(scenic, "samples").to_pylist()
    main = next(s for s in samples if s["role"] == "main") | {"background": "scene"}
    version = tables.version(scenic, "samples")
    tables.merge(scenic, "samples", pa.Table.from_pylist([main], schema.SAMPLES), "sample_id", version, {})
    assert subjects.own_pictures(scenic)["P1"]["neutral_uris"] == []
    picture, _, box = halloween
    found = look(scenic, creative(scenic, picture, box))[0]
    assert found["neutral_rank"] is not None
    assert found["contextual_rank"] > found["neutral_rank"]


def test_an_original_has_scores_and_no_scene(scenic, packshot):
    photo = creative(scenic, packshot[0], None, fallback=True, fallback_reason="below_original")
    found = look(scenic, photo)[0]
    assert (found["product_max_diff"], found["scene_vector"], found["sharpness"]) == (0, None, None)
    assert found["rank_scores"][0] == pytest.approx(found["neutral_rank"], abs=1e-4)


def test_a_picture_that_is_gone_or_broken_is_a_row(scenic, halloween):
    picture, _, box = halloween
    broken = creative(scenic, picture, box, creative_id="b", uri=scenic.put(b"RIFF but no picture", "webp"))
    gone = creative(scenic, picture, box, creative_id="g", uri="objects/00/gone.webp")
    assert [r["reject"] for r in look(scenic, broken, gone)] == ["unreadable_image", "missing_image"]


def test_creatives_of_what_is_gone_are_not_looked_at(scenic, halloween):
    picture, _, box = halloween
    rows = [creative(scenic, picture, box, creative_id=str(i)) for i in range(3)]
    rows[1]["cohort_id"], rows[2]["product_id"] = "gone", "gone"
    table = pa.Table.from_pylist(rows, schema.CREATIVES)
    asked = subjects.pictures_to_measure(table, subjects.own_pictures(scenic), subjects.cohort_texts(scenic), "models")
    assert asked["creative_id"].to_pylist() == ["0"]


def test_a_look_is_named_by_all_that_it_depends_on(scenic, halloween):
    picture, _, box = halloween
    table = pa.Table.from_pylist([creative(scenic, picture, box)], schema.CREATIVES)
    products, cohorts = subjects.own_pictures(scenic), subjects.cohort_texts(scenic)
    first = subjects.pictures_to_measure(table, products, cohorts, "models")["look_id"][0]
    assert subjects.pictures_to_measure(table, products, cohorts, "models")["look_id"][0] == first
    other_text = {name: c | {"text": "else"} for name, c in cohorts.items()}
    fewer = {name: p | {"contextual_uris": []} for name, p in products.items()}
    for changed in ((products, cohorts, "other"), (products, other_text, "models"), (fewer, cohorts, "models")):
        assert subjects.pictures_to_measure(table, *changed)["look_id"][0] != first


def test_a_catalogs_scene_has_features_alone(scenic):
    asked = subjects.catalog_scenes(subjects.own_pictures(scenic), "models", 10)
    found = Evaluator(scenic, judging(scenic))(asked).to_pylist()
    assert len(found) == 2
    assert all(len(r["features"]) == 96 and r["rank_scores"] is None for r in found)
    assert subjects.catalog_scenes(subjects.own_pictures(scenic), "models", 1).num_rows == 1


def test_an_inception_of_ones_own_gives_the_features(scenic, tmp_path):
    """Any ONNX network [N,3,299,299] -> [N,D]; here the mean of each channel."""
    from onnx import TensorProto, helper, save

    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1, 3, 299, 299]), ("y", [1, 3, 1, 1]))
    ]
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "means", shapes[:1], shapes[1:])
    path = tmp_path / "inception.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255
    asked = pa.Table.from_pylist([{"look_id": "s", "uri": scenic.put(images.encode_lossless(red), "webp")}])
    stage = Evaluator(scenic, judging(scenic, inception_model=str(path), mask_model=""))
    found = stage(schema.fill(asked, schema.PICTURES_TO_MEASURE)).to_pylist()[0]
    assert found["features"] == pytest.approx([1, -1, -1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge_model": "/nowhere/judge"}, "no model at /nowhere/judge"),
        ({"judge_model": str(MODELS / "rank")}, "is the model that ranks"),
        ({"judge_model": str(MODELS / "caption")}, "no open_clip_config.json"),
        ({"mask_model": str(MODELS / "rank")}, "not an .onnx file"),
    ],
)
def test_a_missing_or_partial_judge_is_a_sentence(root, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_models(judging(root, **changes))
