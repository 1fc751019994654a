import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest
from safetensors.torch import load_file, save_file

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, CoverageTooLow
from adbooster.contracts.recipe import Recipe
from adbooster.generate import marks, rounds
from adbooster.generate.checks import check as check_generate
from adbooster.generate.config import GenerateConfig
from adbooster.generate.job import generate
from adbooster.generate.plan import JUDGED, NightPlan
from adbooster.generate.publish import plan_publication
from adbooster.generate.rounds import Painted
from adbooster.models.clip_input import read_clip_input
from adbooster.painting.config import Targeting
from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.painting.requests import Planner, staged_folder
from adbooster.pictures import cutouts, images, layout
from adbooster.prompts.config import Prompting
from adbooster.storage import tables
from adbooster.storage.buckets import WHOLE
from adbooster.storage.objects import Root
from tests import tiny_fill
from tests.conftest import MODELS, row

RECIPE = {"candidates": 2, "num_inference_steps": 2, "guidance_scale": 2.0, "size_px": 256, "paint_px": 64}


def config(root, run_id="r1", **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": run_id,
        "weights": str(MODELS / "outpaint"),
        "rank_model": str(MODELS / "rank"),
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "paint_batch": 4,
        "recipe": RECIPE,
    }
    return GenerateConfig(**settings | changes)


class Chain:
    """The three stages of painting one after another in this process; `painter` is the one with the networks."""

    def __init__(self, root, settings, recipe_id="recipe", shown_up_to=""):
        self.placer = Placer(root, settings)
        self.painter = Painter(settings, shown_up_to)
        self.finisher = Finisher(root, settings, recipe_id, "weights")

    def __call__(self, rows):
        return self.finisher(self.painter(self.placer(rows)))


def painter(root, **changes):
    return Chain(root, config(root, **changes))


def requests(root, recipe=None, name="recipe"):
    return Planner(root, recipe or Recipe(**RECIPE), name, Prompting(), Targeting(), "").plan(WHOLE).requests


class Stub:
    """A ranker whose answers a test sets, so that the choice among candidates can be checked alone.

    scores  of the candidates of every request, in order; own  of the product's own pictures
    """

    def __init__(self, scores, own):
        self.scores, self.own, self.seen = scores, own, []

    def embed_texts(self, texts):
        return np.ones((len(texts), 1), np.float32)

    input = read_clip_input(MODELS / "rank")

    def embed_pixels(self, pixels_u8):
        pictures = np.asarray(pixels_u8)
        small = [images.resize(i, 12, 12).astype(float) for i in pictures]
        if pictures.shape[1] == self.input.height_px:
            return np.float32([[self.own]] * len(pictures))
        if pictures.shape[1] == RECIPE["paint_px"]:  # previews
            self.seen = list(zip(small, self.scores * (len(small) // len(self.scores)), strict=True))
            return np.float32([[score] for _, score in self.seen])
        nearest = [min(self.seen, key=lambda known: np.abs(known[0] - s).sum())[1] for s in small]
        return np.float32(nearest)[:, None]


def test_the_stored_products_are_the_photos_pixels(stocked):
    """The first promise, end to end: read every stored creative back and compare it with the packshot."""
    stage = painter(stocked)
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    done = stage(requests(stocked)).to_pylist()
    assert len(done) == 2
    for creative in done:
        sample = tables.read(stocked, "samples").to_pylist()[0]
        cutout = cutouts.cut(
            images.decode(stocked.read(sample["photo_uri"])), images.decode_mask(stocked.read(sample["mask_uri"]))
        )
        stored = images.decode(stocked.read(creative["uri"]))
        box = layout.Box(**creative["layout"])
        scaled = cutout.scaled(box.width_px, box.height_px)
        solid = scaled.alpha == 255
        assert solid.sum() > 500
        assert np.array_equal(stored[box.slices][solid], scaled.pixels[solid])
        assert creative["gates"]["product_max_diff"] == 0
        assert stored.shape == (256, 256, 3)
        assert (stored[0] != 255).any(), "the background is painted"


def test_same_request_same_bytes_in_any_batch(stocked):
    rows, stage = requests(stocked), painter(stocked)
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    together, alone = stage(rows).to_pylist(), stage(rows.slice(1, 1)).to_pylist()
    assert not alone[0]["fallback"]
    assert alone[0]["sha256"] == next(r for r in together if r["request_id"] == alone[0]["request_id"])["sha256"]


def test_the_best_by_score_wins_and_ties_go_to_the_first(stocked):
    stage = painter(stocked, recipe=RECIPE | {"keep": 2, "diversity": 0.0})
    stage.painter.ranker = Stub([0.4, 0.9], own=0.1)
    first = stage(requests(stocked).slice(0, 1)).to_pylist()
    assert [r["rank"] for r in first] == [0, 1]
    assert [round(r["clip_score"], 2) for r in first] == [0.9, 0.4]
    assert round(first[0]["margin"], 2) == 0.8
    stage.painter.ranker = Stub([0.5, 0.5], own=0.1)
    tied = stage(requests(stocked).slice(0, 1)).to_pylist()
    assert [r["seed"] for r in tied] == [r["seed"] for r in first][::-1]


def test_when_nothing_beats_the_original_it_is_the_creative(stocked):
    stage = painter(stocked)
    stage.painter.ranker = Stub([0.1, 0.2], own=0.3)
    creative = stage(requests(stocked).slice(0, 1)).to_pylist()[0]
    photo_uri = tables.read(stocked, "samples").to_pylist()[0]["photo_uri"]
    assert creative["fallback"]
    assert creative["uri"] == photo_uri
    assert creative["margin"] == 0


def test_a_night_costs_only_what_changed(warm_ray, stocked):
    first = generate(config(stocked))
    assert (first.requests, first.painted, first.published, first.coverage) == (2, 2, 2, 1.0)
    assert tables.open_table(stocked, "creatives").history()[0]["recipe_id"] == first.recipe_id
    assert stocked.exists("runs/r1/report.html")
    before = tables.read(stocked, "creatives")
    stocked.write("runs/r1/report.json", b"{}")

    again = generate(config(stocked, "r2"))
    assert (again.already_live, again.painted, again.published) == (2, 0, 0)
    assert again.creatives_version == first.creatives_version
    assert again.uplift.keys() == {"all", "events", "seasons"}

    # A cohort's text changes: its request alone is painted anew and replaces the old creative.
    cohorts = tables.read(stocked, "cohorts").to_pylist()
    changed = [c | {"context": "a beach", "version": "2"} for c in cohorts if c["cohort_id"] == "c2"]
    tables.merge(stocked, "cohorts", pa.Table.from_pylist(changed, schema.COHORTS), "cohort_id", 0, {})
    third = generate(config(stocked, "r3"))
    assert (third.already_live, third.painted, third.retired) == (1, 1, 1)
    after = tables.read(stocked, "creatives")
    assert after.num_rows == 2
    kept = set(before["creative_id"].to_pylist()) & set(after["creative_id"].to_pylist())
    assert len(kept) == 1

    # A cohort is gone: its creative is retired, nothing is painted.
    tables.merge(stocked, "cohorts", schema.COHORTS.empty_table(), "cohort_id", 1, {}, delete=["c2"])
    fourth = generate(config(stocked, "r4"))
    assert (fourth.painted, fourth.retired) == (0, 1)
    assert tables.read(stocked, "creatives")["cohort_id"].to_pylist() == ["c1"]
    assert tables.read(stocked, "creatives", version=first.creatives_version).num_rows == 2


def test_products_and_weights_night_by_night(warm_ray, stocked, tmp_path):
    """One product changes: its requests alone. A product goes: retired. Other weights: everything."""
    only = {"recipe": RECIPE | {"candidates": 1, "num_inference_steps": 1}}
    first, *_ = tables.read(stocked, "samples").to_pylist()
    more = [first | {"sample_id": f"s{i}", "product_id": f"P{i}"} for i in (2, 3)]
    tables.merge(stocked, "samples", pa.Table.from_pylist(more, schema.SAMPLES), "sample_id", 0, {})
    assert generate(config(stocked, "n1", **only)).painted == 6
    before = {r["creative_id"]: r for r in tables.read(stocked, "creatives").to_pylist()}

    photo = images.decode(stocked.read(first["photo_uri"])).copy()
    photo[:3, :3] = 200
    uri = stocked.put(images.encode_lossless(photo), "photo")
    changed = more[0] | {"photo_uri": uri, "photo_sha256": uri.rsplit("/", 1)[-1].split(".")[0]}
    gone = more[1] | {"retired_at": datetime.now(UTC)}
    tables.merge(stocked, "samples", pa.Table.from_pylist([changed, gone], schema.SAMPLES), "sample_id", 1, {})
    done = generate(config(stocked, "n2", **only))
    assert (done.requests, done.already_live, done.painted, done.published, done.retired) == (4, 2, 2, 2, 4)
    after = {r["creative_id"]: r for r in tables.read(stocked, "creatives").to_pylist()}
    assert sorted(r["product_id"] for r in after.values()) == ["P1", "P1", "P2", "P2"]
    kept = {name for name, r in before.items() if r["product_id"] == "P1"}
    assert all(after[name] == before[name] for name in kept)
    assert not {r["product_id"] for name, r in after.items() if name in before} - {"P1"}

    other = tmp_path / "other"
    shutil.copytree(MODELS / "outpaint", other)
    file = next((other / "unet").glob("*.safetensors"))
    state = load_file(file)
    save_file(state | {"conv_out.weight": state["conv_out.weight"] * 0.9}, file)
    done = generate(config(stocked, "n3", weights=str(other), **only))
    assert (done.already_live, done.painted, done.published, done.retired) == (0, 4, 4, 4)
    rows = tables.read(stocked, "creatives")
    assert set(rows["weights_revision"].to_pylist()) == {done.weights_revision}
    assert not set(rows["creative_id"].to_pylist()) & set(after)


def test_a_night_in_many_parts_gives_what_one_in_a_single_part_gives(warm_ray, stocked, tmp_path):
    """Products come, change and go, cohorts too; a part holds one product or none."""
    only = {"recipe": RECIPE | {"candidates": 1, "num_inference_steps": 1, "gates": {"min_background_distance": 8}}}
    shutil.copytree(stocked.uri, tmp_path / "other")
    other = Root(str(tmp_path / "other"))
    sample = tables.read(stocked, "samples").to_pylist()[0]
    nights = [
        ([sample | {"sample_id": f"s{i}", "product_id": f"P{i}"} for i in range(2, 6)], []),
        ([sample | {"sample_id": "s3", "product_id": "P3", "caption": "a jar"}], ["s2"]),
        ([sample | {"sample_id": "s7", "product_id": "P7"}], ["s3", "s4"]),
    ]
    for n, (rows, gone) in enumerate(nights):
        reports = []
        for root, part_rows in ((stocked, 500_000), (other, 1)):
            new = pa.Table.from_pylist(rows, schema.SAMPLES)
            tables.merge(root, "samples", new, "sample_id", tables.version(root, "samples"), {}, delete=gone)
            reports.append(generate(config(root, f"n{n}", part_rows=part_rows, **only)))
        live = [
            sorted(tables.read(root, "creatives").drop_columns(["gpu_s"]).to_pylist(), key=lambda r: r["creative_id"])
            for root in (stocked, other)
        ]
        assert live[0] == live[1]
        told = [
            r.model_dump(exclude={"seconds", "gpu_s", "gallery_uri", "gpu_hours_estimate", "painter_busy"})
            for r in reports
        ]
        for one in told:
            del one["prompts"]["prompts"]  # a prompt of two products counts in each of their parts
        assert told[0] == told[1]
    assert len(tables.open_table(other, "creatives").file_uris()) > 2


def test_what_cannot_be_bought_is_not_painted_and_what_is_live_of_it_stays(warm_ray, stocked):
    def sample(**values):
        rows = pa.Table.from_pylist([tables.read(stocked, "samples").to_pylist()[0] | values], schema.SAMPLES)
        tables.merge(stocked, "samples", rows, "sample_id", tables.version(stocked, "samples"), {})

    only = {"recipe": RECIPE | {"candidates": 1, "num_inference_steps": 1}}
    sample(available=False)
    none = generate(config(stocked, "n1", **only))
    assert (none.requests, none.sold_out, none.painted, none.creatives_version) == (0, 2, 0, None)
    sample(available=True)
    assert generate(config(stocked, "n2", **only)).painted == 2
    before = tables.read(stocked, "creatives").to_pylist()
    sample(available=False, caption="another mug")  # it would be painted anew
    held = generate(config(stocked, "n3", **only))
    assert (held.requests, held.already_live, held.to_paint, held.retired, held.coverage) == (2, 2, 0, 0, 1.0)
    assert tables.read(stocked, "creatives").to_pylist() == before
    sample(available=None)
    assert generate(config(stocked, "n4", **only)).painted == 2


def test_the_page_says_why_nothing_was_published(stocked, monkeypatch):
    nothing = schema.STAGED.empty_table().select(JUDGED)

    def paint_nothing(_: GenerateConfig, night: NightPlan) -> Painted:
        return Painted(rows=nothing, first_ranks=nothing, painted=0, rejected=night.to_paint)

    monkeypatch.setattr("adbooster.generate.job.paint", paint_nothing)
    with pytest.raises(CoverageTooLow):
        generate(config(stocked))
    assert "0.0% of 2 requests" in stocked.read("runs/r1/report.html").decode()
    assert tables.version(stocked, "creatives") is None


def test_what_people_approved_stays_and_what_they_rejected_never_comes_back(warm_ray, stocked, tmp_path):
    def live():
        return {r["cohort_id"]: r for r in tables.read(stocked, "creatives").to_pylist()}

    generate(config(stocked, "n1"))
    first = live()
    assert not any(r["fallback"] for r in first.values())
    said = [{"creative_id": first[c]["creative_id"], "mark": m} for c, m in (("c1", "rejected"), ("c2", "approved"))]
    path = tmp_path / "marks.json"
    path.write_text(json.dumps({"format": marks.FORMAT, "marks": said}))
    dry = generate(config(stocked, "n2", marks_uri=str(path), dry_run=True))
    assert (dry.to_paint, tables.version(stocked, "marks")) == (1, None)
    done = generate(config(stocked, "n2", marks_uri=str(path)))
    assert (done.painted, done.already_live, done.retired, done.marks.renamed, done.marks.unknown) == (1, 1, 1, 1, 0)
    second = live()
    assert second["c2"] == first["c2"]
    assert second["c1"]["seed"] != first["c1"]["seed"]
    assert second["c1"]["sha256"] != first["c1"]["sha256"]
    page = json.loads(stocked.read("runs/n2/gallery.json"))
    assert [c["mark"] for c in page["creatives"]] == [None, "approved"]
    assert [len(c["candidates"]) for c in page["creatives"]] == [2, 2]

    # Without the file, and with another recipe: the approved one stays, the other is painted anew.
    third = generate(config(stocked, "n3", recipe=RECIPE | {"seed": 5}))
    assert (third.painted, third.marks.held, third.coverage) == (1, 1, 1.0)
    assert live()["c2"] == first["c2"]
    # Back to the first recipe: not what was rejected, but what was painted in its place.
    generate(config(stocked, "n4"))
    assert live()["c1"]["sha256"] == second["c1"]["sha256"]


def test_what_a_killed_run_staged_is_not_painted_again(warm_ray, stocked):
    """A run that died after staging one of two requests: the next paints the other and publishes both."""
    undisturbed = painter(stocked)(requests(stocked))
    whole = config(stocked, "r2")
    recipe = generate(whole.model_copy(update={"dry_run": True})).recipe_id
    wanted = requests(stocked, name=recipe)
    done = Chain(stocked, config(stocked, "killed"), recipe)(wanted.slice(0, 1))
    stocked.fs.makedirs(stocked.path(staged_folder("killed", recipe)))
    pap.write_table(done, stocked.path(staged_folder("killed", recipe)) + "/part-0.parquet")
    stocked.write(staged_folder("killed", recipe) + "/part-1.parquet", b"PAR1 cut short")
    report = generate(whole)
    assert (report.already_staged, report.painted, report.published) == (1, 1, 2)
    assert tables.read(stocked, "creatives").num_rows == undisturbed.num_rows


def test_coverage_counts_what_is_live_and_what_is_painted(stocked):
    wanted = requests(stocked)
    place = {name: wanted[name][0].as_py() for name in ("request_id", "product_id", "cohort_id", "placement")}
    one = pa.Table.from_pylist([row(schema.STAGED, creative_id="c", rank=0, round=0, **place)], schema.STAGED)
    nothing = one.slice(0, 0)
    with NightPlan(config(stocked), stocked) as night:
        assert plan_publication(night, nothing, nothing).coverage == 0.0
        assert plan_publication(night, one, nothing).coverage == 0.5
        assert plan_publication(night, one, one.set_column(0, "creative_id", pa.array(["d"]))).coverage == 1.0
    tables.merge(stocked, "creatives", schema.fill(one, schema.CREATIVES), "creative_id", None, {})
    with NightPlan(config(stocked), stocked) as night:
        assert plan_publication(night, nothing, nothing).coverage == 0.5


def test_every_part_of_a_request_changes_its_name(stocked):
    one = set(requests(stocked)["request_id"].to_pylist())
    other = set(requests(stocked, name="other recipe")["request_id"].to_pylist())
    assert len(one | other) == 4


def test_no_cohorts_and_no_products_are_said(root, stocked):
    tables.merge(stocked, "cohorts", schema.COHORTS.empty_table(), "cohort_id", 0, {}, delete=["c1", "c2"])
    with pytest.raises(ConfigError, match="no cohort; run jobs.cohorts first"):
        requests(stocked)
    with pytest.raises(ConfigError, match="no usable main picture"):
        requests(Root(root.uri + "-empty"))


def test_weights_without_weights(stocked, tmp_path):
    with pytest.raises(ConfigError, match="there is no model at"):
        check_generate(config(stocked, weights=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="diffusers layout"):
        check_generate(config(stocked, weights=str(tmp_path)))


def test_winners_do_not_share_a_scene(warm_ray, stocked):
    """With a gate that finds all scenes alike the second of a product's cohorts is painted again, then falls back."""
    alike = {"min_background_distance": 64, "max_background_similarity": -1.0}
    whole = config(stocked, recipe=RECIPE | {"gates": alike, "max_rounds": 2})
    done = generate(whole)
    rows = tables.read(stocked, "creatives").to_pylist()
    assert sum(not r["fallback"] for r in rows) <= 1
    if done.fallback_reasons.get("duplicate_background"):
        assert done.repainted_duplicates >= 1
    assert done.published == 2
    again = generate(whole.model_copy(update={"run_id": "r2"}))
    assert (again.painted, again.published, again.repainted_duplicates) == (0, 0, 0)


def test_the_dry_run_says_what_a_night_will_cost(warm_ray, stocked):
    first = generate(config(stocked, "r0").model_copy(update={"dry_run": True}))
    assert (first.to_paint, first.gpu_hours_estimate, first.estimated_from) == (2, None, None)
    generate(config(stocked))
    done = generate(config(stocked, "r2").model_copy(update={"dry_run": True}))
    assert (done.to_paint, done.gpu_hours_estimate, done.estimated_from) == (0, 0.0, "this recipe")
    other = config(stocked, "r3", recipe=RECIPE | {"seed": 1}).model_copy(update={"dry_run": True})
    dry = generate(other)
    assert (dry.to_paint, dry.estimated_from) == (2, "other recipes")
    assert dry.gpu_hours_estimate > 0
    assert dry.cohort_shares == {"c1": 0.5, "c2": 0.5}
    assert not stocked.exists("runs/r3")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": RECIPE | {"keep": 3}}, "recipe.keep 3 is more than recipe.candidates 2"),
        (
            {"recipe": RECIPE | {"candidates": 4, "keep": 3, "halving": {"at": 0.5}}},
            "recipe.keep 3 is more than the 2 candidates that recipe.halving leaves",
        ),
        ({"recipe": RECIPE | {"gates": {"max_expansion_share": 0.2}}}, "needs --mask-model"),
        ({"recipe": RECIPE | {"scheduler": "Nothing"}}, "no scheduler 'Nothing'"),
        ({"recipe": RECIPE | {"paint_px": 66}}, "multiples of 8"),
        ({"adapters": [{"uri": str(MODELS / "rank" / "open_clip_config.json")}]}, "not a .safetensors file"),
        ({"targeting": {"rule": "table"}}, "needs targeting.table_uri"),
        ({"root_uri": "/proc/nowhere"}, "cannot be written"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_anything_starts(stocked, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_generate(config(stocked, **changes))


def test_a_fill_model_is_told_no_negative_prompt(stocked, tmp_path):
    fill = tiny_fill.write_pipeline(tmp_path / "fill", MODELS / "outpaint" / "tokenizer")
    with pytest.raises(ConfigError, match="takes no negative prompt"):
        check_generate(config(stocked, weights=str(fill)))
    check_generate(config(stocked, weights=str(fill), prompts={"negative_prompt": ""}))


def test_a_small_round_is_split_finer_than_a_large_one(root):
    """Every painter gets some, in whole passes of the network."""
    settings = config(root, paint_batch=16, recipe={"candidates": 4}, paint={"actors": 3, "batch": 20})
    assert [rounds._batch(settings, n) for n in (1, 24, 60, 10_000)] == [4, 4, 12, 20]
