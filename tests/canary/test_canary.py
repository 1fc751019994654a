"""The verdict on made-up looks, and on pictures of weights that paint noise."""

import shutil

import pyarrow as pa
import pytest
from safetensors.torch import load_file, save_file

from adbooster.canary.checks import check as check_canary
from adbooster.canary.config import CanaryConfig, CanaryReport
from adbooster.canary.job import _reason, canary, require, verdict
from adbooster.contracts import schema
from adbooster.contracts.errors import CanaryRefused, ConfigError
from adbooster.measure.config import Trial, TrialsConfig
from adbooster.measure.measurements import store
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash
from tests.conftest import MODELS, row
from tests.fake_measurements import looks
from tests.measure.test_trials import BASE, painted, trying


def config(root=None, **changes):
    settings = {
        "root_uri": root.uri if root else "/nowhere",
        "run_id": "r",
        "weights": str(MODELS / "outpaint"),
        "rank_model": str(MODELS / "rank"),
        "judge_model": str(MODELS / "judge"),
        "device": "cpu",
    }
    return CanaryConfig(**settings | changes)


def failed(candidate, live, **changes):
    return [f.name for f in verdict(config(**changes), candidate, live) if not f.passed]


def test_the_same_pictures_pass():
    assert failed(looks(), looks()) == []


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("judge_score", {"judge_scores": [0.4, 0.42]}),
        ("expansion_share", {"expansion_share": 0.2}),
        ("second_copies", {"copy_similarity": lambda p, c: 0.95 if c else None}),
        ("sharpness", {"sharpness": 1.0}),
        ("exposure", {"exposure": 0.9}),
        ("exposure", {"exposure": 0.1}),
        ("product_max_diff", {"product_max_diff": 9}),
        ("fallbacks", {"fallback": lambda p, c: c == 0}),
        ("near_duplicates_of_product", {"background_phash": "0" * 16, "background_simhash": "0" * 64}),
    ],
)
def test_every_figure_can_refuse(name, worse):
    assert name in failed(looks(**worse), looks())
    better = {"exposure", "near_duplicates_of_product"}
    assert name in better or failed(looks(), looks(**worse)) == [], "better is not refused"


def test_worse_within_the_margin_passes():
    assert failed(looks(judge_scores=[0.4, 0.44]), looks()) == []
    assert failed(looks(judge_scores=[0.4, 0.44]), looks(), margins={"judge_score": 0.005}) == ["judge_score"]


def test_the_rules_differ_where_the_interval_is_wide():
    """Half the products are much worse, half much better: on the mean a little worse, and nobody knows."""
    noisy = looks(judge_scores=lambda p, c: [0.4, 0.45 + (0.2 if p % 2 else -0.26)])
    assert failed(noisy, looks()) == []
    assert failed(noisy, looks(), rule="maybe_worse") == ["judge_score"]


def test_a_figure_without_a_margin_only_informs():
    found = {f.name: f for f in verdict(config(), looks(gpu_s=9.0), looks())}
    assert (found["gpu_s"].margin, found["gpu_s"].passed) == (None, True)
    assert found["gpu_s"].difference.mean == 8


def test_reasons_give_both_figures_the_interval_and_the_margin():
    figure = next(f for f in verdict(config(), looks(expansion_share=0.2), looks()) if not f.passed)
    assert _reason(figure).startswith("expansion_share 0.2 against 0.02 share: +0.18 [")


def live(root, revision):
    creative = row(schema.CREATIVES, creative_id="a", product_id="P1", cohort_id="c1", weights_revision=revision)
    rows = pa.Table.from_pylist([creative], schema.CREATIVES)
    tables.merge(root, "creatives", rows, "creative_id", None, {"weights_revision": revision})


def test_with_nothing_live_there_is_nothing_to_compare_with(root):
    found = canary(config(root))
    assert (found.passed, found.against) == (True, None)
    assert "nothing is live" in found.reasons[0]
    assert root.exists("runs/r/canary.json")


def test_the_live_weights_themselves_pass_without_painting(root):
    live(root, content_hash(MODELS / "outpaint"))
    assert canary(config(root)).reasons == ["these are the weights that are live"]


def test_live_weights_that_are_gone_are_a_sentence(root):
    live(root, "0123456789abcdef")
    with pytest.raises(ConfigError, match="0123456789abcdef.*canary.against"):
        canary(config(root))


def test_a_margin_of_an_unknown_figure_is_a_sentence(root):
    with pytest.raises(ConfigError, match="'beauty'"):
        check_canary(config(root, margins={"beauty": 1.0}))


def noise(folder):
    """The embedded outpainter with a UNet that paints noise."""
    shutil.copytree(MODELS / "outpaint", folder)
    path = next((folder / "unet").glob("*.safetensors"))
    save_file({name: t * 0.2 for name, t in load_file(path).items()}, path)
    return folder


def test_weights_that_paint_noise_are_refused_with_reasons(scenic, tmp_path):
    """The panel is painted by the stage itself beforehand, so that no actor has to start."""
    bad = noise(tmp_path / "noise")
    for trial in (BASE, Trial(name="bad", weights=str(bad))):
        store(scenic, "earlier", [pa.Table.from_pylist(painted(scenic, trying(scenic), trial), schema.LOOKS)])
    shared = {name: getattr(trying(scenic), name) for name in TrialsConfig.model_fields}
    told = CanaryConfig(**shared, weights=str(bad), against=BASE.weights)
    with pytest.raises(CanaryRefused, match="judge_score") as refused:
        require(told)
    assert str(bad) in str(refused.value)
    verdict = CanaryReport.model_validate_json(scenic.read("runs/r/canary.json"))
    assert (verdict.passed, verdict.against) == (False, BASE.weights)
    assert len(verdict.reasons) == sum(not f.passed for f in verdict.figures) > 0
    back = canary(told.model_copy(update={"weights": BASE.weights, "against": str(bad)}))
    assert next(f for f in back.figures if f.name == "judge_score").passed
