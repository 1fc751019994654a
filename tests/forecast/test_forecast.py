"""A night worked out by hand, properties that hold whatever the size, and where figures come from."""

import json

import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Halving, Recipe
from adbooster.engine import stage_records
from adbooster.forecast.figures import NAMES, Figure, gather
from adbooster.forecast.forecast import Prices, forecast
from adbooster.forecast.workload import Workload, cohorts_a_product, network_steps
from adbooster.storage import tables
from tests.conftest import row

PRICES = Prices(gpu_hour=2.0, hours=5, retention_days=10)
SHOP = Workload(products=10_000, cohorts=30, churn=0.1, cohorts_a_product=6, placements=2)
VALUES = {
    "step_s": 0.02,
    "decode_s": 0.05,
    "clip_s": 0.01,
    "gates_s": 0.04,
    "mask_s": 0.1,
    "caption_s": 0.2,
    "place_s": 0.05,
    "finish_s": 0.4,
    "fetch_s": 0.03,
    "shrink_s": 0.02,
    "refine_s": 0.2,
    "plan_s": 1e-5,
    "creative_bytes": 500_000,
    "photo_bytes": 100_000,
    "row_bytes": 500,
}


def figures(**values):
    return {n: Figure(name=n, value=v, by="you", where="here") for n, v in (VALUES | values).items() if v is not None}


def take(shop=SHOP, prices=PRICES, **values):
    return forecast(shop, prices, figures(**values))


def test_a_night_worked_out_by_hand():
    """12,000 of 120,000 requests, each four paintings of 20 guided steps; 1,000 photos."""
    found = take()
    gpu_s = 12_000 * (4 * 20 * 0.02 + 4 * 0.05 + 4 * (0.01 + 0.04)) + 1_000 * (0.1 + 0.2)
    night = found.night
    assert (found.requests, night.requests_painted, night.pictures) == (120_000, 12_000, 1_000)
    assert night.gpu_hours == pytest.approx(gpu_s / 3600)  # 24,300 s: 6.75 h
    assert night.euros == pytest.approx(13.5)
    assert night.gpus == 2
    assert found.year_gpu_hours == pytest.approx(365 * 6.75)
    assert night.core_hours == pytest.approx(
        {"place": 600 / 3600, "finish": 4800 / 3600, "plan": 1.2 / 3600}
        | {"fetch": 30 / 3600, "shrink": 20 / 3600, "refine": 200 / 3600}
    )
    assert night.cores == dict.fromkeys(night.core_hours, 1)
    assert found.first.core_hours["finish"] == pytest.approx(48_000 / 3600)
    assert found.first.cores["finish"] == 3
    # a photo: 2 GET, and 1 as the product's own picture; a product: 2; a creative: 2
    assert night.storage_requests == {
        "GET": 3 * 1_000 + 2 * 1_000 + 2 * 12_000,
        "HEAD": 5 * 1_000 + 2 * 1_000 + 3 * 12_000,
        "LIST": 2 * 1_000 + 12_000,
        "PUT": 2 * 1_000 + 12_000 + 3_000,
    }
    storage = found.storage
    assert (storage.live, storage.a_night) == pytest.approx((60 + 1, 6 + 0.1))
    assert storage.kept == pytest.approx(61 + 10 * 6.1)
    assert storage.tables == pytest.approx(120_000 * 500 * 11 / 1e9)


def recipe(**settings):
    return SHOP.model_copy(update={"recipe": Recipe(**settings)})


def test_more_work_takes_more_and_the_price_is_linear():
    hours = [take(SHOP.model_copy(update={"churn": c})).night.gpu_hours for c in (0.0, 0.01, 0.5, 1.0)]
    assert hours == sorted(hours)
    assert hours[0] == 0
    assert hours[-1] == take().first.gpu_hours
    assert take(prices=PRICES.model_copy(update={"gpu_hour": 7.0})).night.euros == pytest.approx(
        3.5 * take().night.euros
    )
    assert take(prices=PRICES.model_copy(update={"hours": 0.5})).night.gpus == 14
    of_painting = dict(mask_s=None, caption_s=None)
    single, double = (take(recipe(candidates=k), **of_painting).night.gpu_hours for k in (4, 8))
    assert double == pytest.approx(2 * single)
    less, more = (take(recipe(num_inference_steps=n)).night.gpu_hours for n in (20, 40))
    assert more - less == pytest.approx(12_000 * 4 * 20 * 0.02 / 3600)
    one, three = (take(recipe(keep=n)).night for n in (1, 3))
    assert three.gpu_hours == one.gpu_hours
    assert three.core_hours["finish"] == pytest.approx(3 * one.core_hours["finish"])
    assert take(recipe(keep=9)).night.core_hours["finish"] == pytest.approx(4 * one.core_hours["finish"])


def test_steps_without_guidance_cost_half_and_halved_candidates_stop():
    assert network_steps(Recipe(candidates=4, num_inference_steps=10)) == 40
    assert network_steps(Recipe(candidates=4, num_inference_steps=10, guidance_scale=1.0)) == 20
    half_guided = Recipe(candidates=4, num_inference_steps=10, guidance_interval=(0.0, 0.5))
    assert network_steps(half_guided) == 30
    halved = Recipe(candidates=4, num_inference_steps=10, halving=Halving(at=0.4, keep=0.5))
    assert network_steps(halved) == pytest.approx(4 * 4 + 2 * 6)
    shop = SHOP.model_copy(update={"recipe": halved})
    assert (shop.scored, shop.decoded, shop.finalists) == (6, 6, 2)
    linear = halved.model_copy(update={"halving": Halving(at=0.4, keep=0.5, preview="linear")})
    assert SHOP.model_copy(update={"recipe": linear}).decoded == 2


def test_variations_are_forecasts_of_their_own():
    shop = recipe(candidates=4, num_inference_steps=20)
    ratios = {v.what: v.gpu_hours for v in take(shop).variations}
    before = take(shop).night.gpu_hours
    assert ratios["K = 8"] == pytest.approx(take(recipe(candidates=8)).night.gpu_hours / before)
    assert ratios["10 steps"] == pytest.approx(take(recipe(num_inference_steps=10)).night.gpu_hours / before)
    fewer = shop.model_copy(update={"cohorts_a_product": 3.0})
    assert ratios["3 cohorts a product"] == pytest.approx(take(fewer).night.gpu_hours / before)
    assert all(v.euros == pytest.approx(v.gpu_hours) for v in take(shop).variations)
    still = take(shop.model_copy(update={"churn": 0.0}))
    assert {v.what: v.gpu_hours for v in still.variations} == pytest.approx(ratios)


def test_what_is_not_measured_is_named_and_in_no_sum():
    found = take(fetch_s=None, clip_s=None)
    assert set(found.not_measured) == {"fetch_s", "clip_s"}
    assert found.night.core_hours["fetch"] is None
    assert found.night.cores["fetch"] is None
    assert take().night.gpu_hours - found.night.gpu_hours == pytest.approx(12_000 * 4 * 0.01 / 3600)
    assert not take().not_measured
    assert take(photo_bytes=None).storage.live == pytest.approx(60)
    assert take(creative_bytes=None).storage.kept is None


@pytest.mark.parametrize(("text", "found"), [("all", 30), ("top_n:5", 5), ("top_n:50", 30), ("table:3.5", 3.5)])
def test_targeting(text, found):
    assert cohorts_a_product(text, 30) == found


@pytest.mark.parametrize("text", ["", "top_n", "top_n:0", "top_n:x", "table:-1", "nearest:5", "all:3", "top_n:nan"])
def test_targeting_that_is_none(text):
    with pytest.raises(ConfigError, match="--targeting"):
        cohorts_a_product(text, 30)


def test_the_table_says_who_measured_each_figure_and_where():
    found, notes = gather("h100", "sd15", False, "webp_lossless")
    assert found["step_s"].value == pytest.approx(1 / 54.5, rel=1e-3)
    assert found["step_s"].by == "others"
    assert found["finish_s"].by == "project"
    assert all(figure.where and name in NAMES for name, figure in found.items())
    assert not notes
    assert "decode_s" not in found, "nobody has measured it apart"
    whole, _ = gather("a100", "sd15", True, "jpeg")
    assert whole["decode_s"].value == 0
    assert "decode_s" not in gather("a100", "sd15", True, "jpeg", measured=["step_s=0.01"])[0]
    assert gather("h100", "sd15", False, "jpeg", measured=["clip_s=0.004"])[0]["clip_s"].by == "you"


@pytest.mark.parametrize(
    ("asked", "measured", "said"),
    [
        (("b200", "sd15", False), [], "no step of sd15 on b200 has been measured"),
        (("h100", "flux", True), [], "no step of flux on h100 compiled has been measured"),
        (("h100", "sd15", False), ["clip=1"], "--measured clip=1 is no figure"),
        (("h100", "sd15", False), ["clip_s=-1"], "--measured clip_s=-1"),
        (("h100", "sd15", False), ["clip_s=inf"], "--measured clip_s=inf"),
    ],
)
def test_what_nobody_has_measured_is_an_error(asked, measured, said):
    with pytest.raises(ConfigError, match=said):
        gather(*asked, "jpeg", measured=measured)
    assert gather("b200", "sd15", False, "jpeg", measured=["step_s=0.01"])[0]["step_s"].value == 0.01


def run(root, run_id, gpus=1.0, settings="generate", weights="/w/of-the-shop"):
    """The traces of a run that painted 100 requests, each in 2 s of a painter, and prepared 50 photos."""
    stage = {"rows": 100, "gpus": 0.0}
    generate = {"Placer": stage | {"row_s": 0.06}, "Painter": stage | {"row_s": 2.0, "gpus": gpus}}
    generate["Finisher"] = stage | {"row_s": 0.8}
    prepare = {name: stage | {"row_s": s} for name, s in (("Fetcher", 0.01), ("Shrinker", 0.02), ("Refiner", 0.1))}
    prepare["Segmenter"] = stage | {"row_s": 0.04, "gpus": 0.25}
    root.write_json(f"runs/{run_id}/{stage_records.FILE}", {"generate": generate, "prepare": prepare})
    recipe = Recipe(candidates=4, num_inference_steps=25, keep=2, image_format="jpeg")
    painted = {"recipe": recipe.model_dump(mode="json"), "weights": weights, "compiled": False}
    config = painted if settings == "generate" else {"generate": painted}
    root.write_json(f"runs/{run_id}/{settings}.config.json", {"config": config})


@pytest.mark.parametrize("settings", ["generate", "nightly"])
def test_a_root_s_newest_run_is_measured(root, settings):
    run(root, "20261101", gpus=3.0)
    run(root, "20261102", settings=settings)
    root.write_json("runs/20261103/stages.json", {"generate": {}})
    rows = [row(schema.CREATIVES, creative_id=str(n), size_bytes=n) for n in (1000, 3000)]
    tables.merge(
        root, "creatives", schema.CREATIVES.empty_table().from_pylist(rows, schema.CREATIVES), "creative_id", None, {}
    )
    found, notes = gather("any", "of-the-shop", False, "jpeg", root)
    assert not notes
    assert found["step_s"].value == pytest.approx(2.0 / 100)
    assert found["step_s"].where == "run 20261102"
    assert [found[n].value for n in ("decode_s", "clip_s", "gates_s")] == [0, 0, 0]
    assert (found["finish_s"].value, found["place_s"].value) == (0.4, 0.06)
    assert (found["mask_s"].value, found["creative_bytes"].value) == (0.01, 2000)
    assert "caption_s" not in found
    again = Workload(
        products=100, cohorts=1, churn=1, cohorts_a_product=1, recipe=Recipe(candidates=4, num_inference_steps=25)
    )
    assert forecast(again, PRICES, found).night.gpu_hours == pytest.approx((100 * 2.0 + 100 * 0.01) / 3600)


def test_a_root_that_says_nothing_of_a_gpu_says_so(root):
    _, notes = gather("h100", "sd15", False, "jpeg", root)
    assert notes == ["no run has measured the stages of generate", "no run has measured the stages of prepare"]
    run(root, "r1", gpus=0.0)
    found, notes = gather("h100", "sd15", False, "jpeg", root)
    assert notes[0] == "run r1 painted on CPUs, so its painters say nothing of a GPU"
    assert notes[1].startswith("the root's own mask_s left out: its runs do not record whether they used h100")
    assert (found["step_s"].by, found["place_s"].by) == ("others", "root")
    root.write("runs/r1/generate.config.json", json.dumps({"config": {"recipe": {"candidates": "many"}}}).encode())
    assert gather("ours", None, None, "jpeg", root, ["step_s=1"])[1] == [
        "run r1 has no settings to say what its painters did"
    ]


@pytest.mark.parametrize(
    ("asked", "why", "gone", "stays"),
    [
        (("h100", None, None, "jpeg"), "record whether they used h100", {"step_s", "clip_s", "mask_s"}, "finish_s"),
        (("ours", "sdxl", None, "jpeg"), "painted with /w/of-the-shop, not sdxl", {"step_s", "gates_s"}, "mask_s"),
        (("ours", None, True, "jpeg"), "painted not compiled", {"step_s", "decode_s"}, "mask_s"),
        (("ours", None, None, "png"), "stored jpeg, not png", {"finish_s"}, "step_s"),
    ],
)
def test_a_root_s_figures_of_something_else_than_was_asked_for_are_left_out(root, asked, why, gone, stays):
    run(root, "r1")
    found, notes = gather(
        *asked, root=root, measured=["step_s=0.01"] if asked[0] == "ours" and "step_s" in gone else []
    )
    assert len(notes) == 1
    assert why in notes[0]
    assert all(name in notes[0] for name in gone)
    assert not any(found[name].by == "root" for name in gone if name in found)
    assert found[stays].by == "root"
    assert gather("ours", None, None, "jpeg", root)[1] == []
