import json

import numpy as np
import pyarrow as pa
import pytest

from adbooster.canary.config import CanaryConfig
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.evaluation import Evaluation
from adbooster.evaluate.checks import check as check_evaluate
from adbooster.evaluate.config import EvaluateConfig
from adbooster.evaluate.job import evaluate
from adbooster.measure import measurements, subjects
from adbooster.measure.config import revision
from adbooster.measure.stages import Evaluator
from adbooster.storage import tables
from tests.conftest import MODELS
from tests.measure.test_stages import creative, halloween  # noqa: F401
from tests.measure.test_trials import RECIPE

COMMON = {
    "rank_model": str(MODELS / "rank"),
    "judge_model": str(MODELS / "judge"),
    "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
    "zero_shot": False,
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "paint_batch": 4,
    "recipe": RECIPE,
}


def config(root, run_id="e1", **changes):
    return EvaluateConfig(root_uri=root.uri, run_id=run_id, **COMMON | changes)


def publish(root, *creatives, base=None):
    rows = pa.Table.from_pylist(list(creatives), schema.CREATIVES)
    tables.merge(root, "creatives", rows, "creative_id", base, {})


def written(root, run_id="e1"):
    return Evaluation.model_validate_json(root.read(f"runs/{run_id}/evaluation.json"))


def test_an_empty_run_is_a_report_that_says_so(root):
    report = evaluate(config(root))
    assert (report.creatives, report.looked) == (0, 0)
    assert "no creative" in written(root).notes[0]
    assert written(root).experiments == []


def test_a_dry_run_writes_nothing(scenic):
    trial = {"name": "base", "weights": str(MODELS / "outpaint")}
    report = evaluate(config(scenic, dry_run=True, trials=[trial]))
    assert (report.evaluation_uri, scenic.exists("runs/e1")) == (None, False)
    assert report.trials == {"base": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge_model": str(MODELS / "rank")}, "is the model that ranks"),
        ({"outcomes": {"uri": "/nowhere/o.csv"}}, "no outcomes table"),
        ({"trials": [{"name": "live", "weights": str(MODELS / "outpaint")}]}, "'live'"),
    ],
)
def test_what_cannot_work_is_refused_before_an_actor_starts(root, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_evaluate(config(root, **changes))


def test_a_file_of_a_night_says_once_what_its_jobs_share(tmp_path):
    from adbooster.cli.load import load

    path = tmp_path / "night.yaml"
    path.write_text(
        "root_uri: r\ngenerate: {weights: w, rank_model: a, device: cpu, recipe: {candidates: 3}}\n"
        "evaluate: {judge_model: j, device: cuda}\ncanary: {judge_model: j}\n"
    )
    found = load(EvaluateConfig, ["--config", str(path)])
    assert (found.rank_model.endswith("/a"), found.recipe.candidates, found.device) == (True, 3, "cuda")
    tried = load(CanaryConfig, ["--config", str(path), "--weights", "new"])
    assert tried.base.endswith("/w")
    assert tried.weights.endswith("/new")


@pytest.mark.timeout(200)
def test_creatives_trials_outcomes_and_sheet(warm_ray, scenic, halloween, packshot, tmp_path):  # noqa: F811
    """One root from end to end; what was looked at once is not looked at again."""
    picture, _, box = halloween
    darker = (picture * np.float32(0.98)).astype(np.uint8)
    live = [
        creative(scenic, picture, box, creative_id="a", margin=0.2, request_id="ra", sha256="sa"),
        creative(scenic, darker, box, creative_id="b", cohort_id="c2", request_id="rb"),
        creative(scenic, packshot[0], None, creative_id="o", placement="story", fallback=True, request_id="ro")
        | {"fallback_reason": "second_copy", "margin": 0.0, "sha256": "so"},
        creative(scenic, picture, box, creative_id="gone", placement="portrait", uri="objects/00/gone.webp"),
    ]
    publish(scenic, *live)
    outcomes = tmp_path / "o.csv"
    outcomes.write_text(
        "creative_id,day,impressions,clicks,conversions\na,2026-11-01,5000,10,0\no,2026-11-01,5000,200,9\n"
        "not-ours,2026-11-01,10,1,0\n"
    )
    settings = {
        "trials": [{"name": "base, qc", "weights": str(MODELS / "outpaint")}],
        "outcomes": {"uri": str(outcomes)},
        "sheet": {"pairs": 3, "side_px": 64},
    }
    report = evaluate(config(scenic, **settings))
    assert (report.creatives, report.looked, report.unseen) == (4, 3, {"missing_image": 1})
    assert report.trials == {"base, qc": 2}
    assert (report.to_retire, report.sheet_pairs) == (1, 2)

    found = written(scenic)
    assert {(e.experiment, e.pick) for e in found.experiments} == {
        ("live", "published"),
        ("base, qc", "best-of-1"),
        ("base, qc", "best-of-2"),
    }
    figures = {f.name: f for f in found.figures}
    assert figures["product_max_diff"].value > 0, "one creative was darkened by hand"
    assert figures["base, qc: product_max_diff"].value == 0
    assert figures["fallback: second_copy"].value == pytest.approx(1 / 3)
    assert figures["ctr of cohort c1"].value == pytest.approx(0.021)
    assert any("not-ours" in note for note in found.notes)
    assert any("not the same experiment" in note for note in found.notes)
    retired = json.loads(scenic.read("runs/e1/retire.json"))
    assert [(m["creative_id"], m["request_id"], m["mark"]) for m in retired["marks"]] == [("a", "ra", "rejected")]
    assert scenic.exists("runs/e1/blind.key.json")

    # A second evaluation looks at what is new and forgets what is no longer live.
    version = tables.version(scenic, "looks")
    scenic.write("runs/e1/report.json", b"{}")
    assert evaluate(config(scenic, "e2", **settings)).looked == 3
    assert tables.version(scenic, "looks") == version, "nothing was looked at"
    tables.merge(scenic, "creatives", schema.CREATIVES.empty_table(), "creative_id", 0, {}, delete=["b", "gone"])
    assert evaluate(config(scenic, "e3")).looked == 2
    assert "b" not in tables.read(scenic, "looks", ["creative_id"])["creative_id"].to_pylist()


def test_only_originals_are_reported_as_such(scenic, packshot):
    original = creative(scenic, packshot[0], None, fallback=True, fallback_reason="below_original")
    publish(scenic, original)
    told = config(scenic, mask_model="", most_scenes=0)
    products, cohorts = subjects.own_pictures(scenic), subjects.cohort_texts(scenic)
    live = tables.read(scenic, "creatives")
    asked = subjects.pictures_to_measure(live, products, cohorts, revision(told))
    measurements.store(scenic, "earlier", [Evaluator(scenic, told)(asked)])  # so that no actor has to start
    report = evaluate(told)
    assert any("products' own pictures" in note for note in report.notes)
    row_all = next(e for e in written(scenic).experiments if e.family == "all" and e.scorer == "rank")
    assert row_all.difference_neutral.mean == pytest.approx(0, abs=1e-4)
