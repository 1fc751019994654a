import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.measure import subjects, trials
from adbooster.measure.checks import check_trials
from adbooster.measure.config import ComparisonPanel, Trial, TrialsConfig
from adbooster.measure.stages import TrialPainter
from tests.conftest import MODELS
from tests.prompts.test_language_model import Server

RECIPE = {"candidates": 2, "num_inference_steps": 2, "guidance_scale": 2.0, "size_px": 256, "paint_px": 64}
BASE = Trial(name="base", weights=str(MODELS / "outpaint"))


def trying(root, **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": "r",
        "rank_model": str(MODELS / "rank"),
        "judge_model": str(MODELS / "judge"),
        "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "paint_batch": 4,
        "recipe": RECIPE,
    }
    return TrialsConfig(**settings | changes)


def asked(root, config, trial=BASE):
    return trials.trial_requests(root, config, trial, subjects.own_pictures(root), subjects.cohort_texts(root))


def painted(root, config, trial=BASE):
    return TrialPainter(root, config, trial)(asked(root, config, trial)[0]).to_pylist()


def test_a_trial_scores_every_candidate_and_measures_the_best(scenic):
    found = painted(scenic, trying(scenic))
    assert [(r["product_id"], r["cohort_id"]) for r in found] == [("P1", "c1"), ("P1", "c2")]
    for look in found:
        assert len(look["rank_scores"]) == len(look["judge_scores"]) == 2
        assert look["best"] == int(np.argmax(look["rank_scores"]))
        assert look["product_max_diff"] == 0
        assert look["contextual_judge"] is not None
        own = max(look["neutral_rank"], look["contextual_rank"])
        assert look["fallback"] == (max(look["rank_scores"]) <= own)
        assert look["gpu_s"] > 0
    again = painted(scenic, trying(scenic))
    drop = {"gpu_s"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in again] == [
        {k: v for k, v in r.items() if k not in drop} for r in found
    ]


@pytest.mark.slow
def test_best_of_one_is_what_one_candidate_would_have_been(scenic):
    two = painted(scenic, trying(scenic))
    one = painted(scenic, trying(scenic, recipe=RECIPE | {"candidates": 1}))
    assert [r["rank_scores"][0] for r in one] == pytest.approx([r["rank_scores"][0] for r in two], abs=2e-3)
    assert [r["judge_scores"][0] for r in one] == pytest.approx([r["judge_scores"][0] for r in two], abs=2e-3)


def test_gates_and_rounds_do_not_make_another_trial(scenic):
    plain = asked(scenic, trying(scenic))[0]["look_id"]
    gated = asked(scenic, trying(scenic, recipe=RECIPE | {"gates": {"max_people": 0.1}, "max_rounds": 5}))[0]["look_id"]
    other = asked(scenic, trying(scenic, recipe=RECIPE | {"guidance_scale": 3.0}))[0]["look_id"]
    assert plain.equals(gated)
    assert not plain.equals(other)


def test_a_panel_is_the_same_while_the_catalog_grows():
    def products(n):
        return {f"p{i}": {"contextual_uris": ["x"] if i % 2 else []} for i in range(n)}

    cohorts = {f"c{i}": {} for i in range(9)}
    panel = ComparisonPanel(products=4, cohorts=3)
    first = panel.pairs(products(50), cohorts)
    assert len(first) == 12
    assert all(int(p[1:]) % 2 for p, _ in first), "products with a scene of their own come first"
    same = {p for p, _ in first} & {p for p, _ in panel.pairs(products(60), cohorts)}
    assert len(same) >= 3
    named = ComparisonPanel(product_ids=("p7", "gone"), cohort_ids=("c1",)).pairs(products(50), cohorts)
    assert named == [("p7", "c1")]


def test_prompts_of_a_language_model_are_another_trial(scenic):
    server = Server()
    try:
        model = {"base_url": server.url, "model": "m"}
        llm = Trial(name="base, llm", weights=BASE.weights, prompts={"style": "llm", "llm": model})
        by_model, figures = asked(scenic, trying(scenic), llm)
        by_hand, _ = asked(scenic, trying(scenic))
        assert figures.called == 2
        assert by_model["prompt_style"].to_pylist() == ["llm", "llm"]
        assert "fresh snow under tall pines" in by_model["prompt"][0].as_py()
        assert not set(by_model["look_id"].to_pylist()) & set(by_hand["look_id"].to_pylist())
    finally:
        server.shutdown()


def test_without_products_there_is_nothing_to_try(root):
    with pytest.raises(ConfigError, match="run jobs.prepare"):
        asked(root, trying(root))


def test_hostile_ids_make_a_panel_all_the_same(scenic):
    from adbooster.storage import tables

    name = 'a "quoted", one\'s'
    samples = tables.read(scenic, "samples").to_pylist()
    more = [s | {"product_id": name, "sample_id": s["sample_id"] + "x"} for s in samples]
    version = tables.version(scenic, "samples")
    tables.merge(scenic, "samples", pa.Table.from_pylist(more, schema.SAMPLES), "sample_id", version, {})
    rows, _ = asked(scenic, trying(scenic))
    assert set(rows["product_id"].to_pylist()) == {"P1", name}


def test_weights_that_cannot_paint_are_a_sentence(root):
    with pytest.raises(ConfigError, match="unet/config.json"):
        check_trials(trying(root), [Trial(name="t", weights=str(MODELS / "rank"))])
