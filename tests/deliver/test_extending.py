"""Creatives that are extended by the tiny model: what is kept, what is asked for again, and what is shown where a seam is."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import pytest
import yaml

from adbooster.channels.frames import frame
from adbooster.channels.presets import Slot, load_channels
from adbooster.cli.load import load
from adbooster.contracts import schema
from adbooster.contracts.errors import TooManyRejects
from adbooster.deliver.config import DeliverConfig, Extension
from adbooster.deliver.extender import Extender, Framer, Joiner
from adbooster.deliver.extending import Models
from adbooster.deliver.job import deliver
from adbooster.deliver.plan import plan
from adbooster.engine.staging import Staged
from adbooster.night.config import NightlyConfig
from adbooster.painting.requests import revisions
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.provenance import xmp
from adbooster.report.inspect import inspect
from adbooster.storage import tables
from tests.conftest import MODELS
from tests.deliver.conftest import config
from tests.deliver.pictures import BOX, publish

RECIPE = {"num_inference_steps": 2, "guidance_scale": 2.0, "size_px": 240, "paint_px": 64}
EXTEND = {
    "weights": str(MODELS / "outpaint"),
    "rank_model": str(MODELS / "rank"),
    "device": "cpu",
    "dtype": "float32",
    "paint_batch": 2,
    "max_seam": None,
    "recipe": RECIPE,
}
SLOTS = {
    "square": {"ratio": [1, 1], "min_px": [100, 100], "wanted_px": [240, 240]},
    "hero": {"ratio": [1.91, 1], "min_px": [400, 209], "wanted_px": [400, 209]},
}
RECIPE_ID = revisions(Extension.model_validate(EXTEND).painting("root", "r"))[1]


@pytest.fixture
def shop(tmp_path):
    """A channel with a slot that a crop of a square creative fills, and one that it does not."""
    both = {"formats": ["png"], "max_bytes": 1_000_000}
    limits = {"id": 50, "url": 500, "images": 50}
    content = {"name": "shop", "feed": "manifest", "limits": limits, "slots": {n: s | both for n, s in SLOTS.items()}}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(content))
    return (str(tmp_path / "shop.yaml"),)


@pytest.fixture
def extended(monkeypatch, rendered):
    """Creatives are extended here, without Ray, and staged as the engine stages them; gives the requests, call by call."""
    calls = []

    def through(ds, stage, pool, out, failures=None, times=None, **init):
        good = pc.is_null(ds["reject"])
        skipped = schema.fill(ds.filter(pc.invert(good)), out)
        return pa.concat_tables([stage(**init)(ds.filter(good)), skipped]) if pc.any(good).as_py() else skipped

    def stage_parts(rows, root, folder, progress=None):
        out = pa.BufferOutputStream()
        pap.write_table(rows, out)
        root.write(f"{folder}/{hashlib.sha256(out.getvalue()).hexdigest()[:32]}.parquet", out.getvalue().to_pybytes())
        calls.append(rows)
        return Staged([rows], "")

    for name, fake in (("through", through), ("stage_parts", stage_parts), ("dataset", lambda rows, batch: rows)):
        monkeypatch.setattr(f"adbooster.deliver.job.{name}", fake)
    for name in ("cluster.start", "stage_times.start"):
        monkeypatch.setattr(f"adbooster.deliver.job.{name}", lambda: None)
    monkeypatch.setattr("adbooster.deliver.job.stage_times.write", lambda *given: {})
    monkeypatch.setattr("adbooster.deliver.job.preflight", lambda pools: None)
    return calls


def settings(root, channels, run_id="d1", extend=(), **changes):
    return config(root, channels, run_id, extend=EXTEND | dict(extend), **changes)


def rows(root):
    return {(r["product_id"], r["slot"]): r for r in tables.read(root, "deliveries").to_pylist()}


def end(root, run_id):
    root.write_json(f"runs/{run_id}/report.json", {})


def test_an_extension_keeps_every_pixel_of_the_creative(root, shop, extended, tmp_path):
    [creative] = publish(root, recipe_id=RECIPE_ID)
    report = deliver(settings(root, shop))
    assert (report.to_extend, report.extended, report.not_extended) == (1, 1, {})
    assert report.made_by == {"crop": 1, "extension": 1}
    hero = rows(root)["P1", "hero"]
    assert hero["seam"] == pytest.approx(report.seam, abs=0.01)
    stored, master = images.decode(root.read(hero["extended_uri"])), images.decode(root.read(creative["uri"]))
    box = Box(**hero["frame"])
    assert box.x_px < 0
    assert stored.shape == (box.height_px, box.width_px, 3)
    x, y = max(0, -box.x_px), max(0, -box.y_px)
    part = master[max(0, box.y_px) : box.y_px + box.height_px]
    assert np.array_equal(stored[y : y + part.shape[0], x : x + 240], part)
    assert hashlib.sha256(root.read(hero["extended_uri"])).hexdigest() == hero["extended_sha256"]
    assert len(np.unique(stored[:, : x - 2].reshape(-1, 3), axis=0)) > 50, "a scene is painted beside it"
    file = root.read(hero["uri"])
    shown = images.decode(file)
    assert shown.shape == (209, 400, 3)
    assert xmp.read(file).source == f"urn:sha256:{creative['sha256']}"
    assert np.array_equal(shown, images.resize(stored, 400, 209)), "PNG: nothing is lost"
    for uri, what in ((hero["uri"], "rendition"), (hero["extended_uri"], "extension")):
        (tmp_path / "file").write_bytes(root.read(uri))
        found = inspect(root, str(tmp_path / "file"))
        assert (found.what, found.holds) == (what, True), found.checks
    spoiled = stored.copy()
    spoiled[box.height_px // 2, box.width_px // 2 - 30 : box.width_px // 2 + 30] = 0
    (tmp_path / "file").write_bytes(images.encode_lossless(spoiled))
    assert inspect(root, str(tmp_path / "file")).holds is False


def test_nothing_is_painted_or_encoded_twice(root, shop, extended, rendered):
    publish(root, products=("P1", "P2"), recipe_id=RECIPE_ID)
    first = deliver(settings(root, shop))
    end(root, "d1")
    second = deliver(settings(root, shop, "d2"))
    assert (first.to_extend, second.to_extend, second.to_render, second.changed) == (2, 0, 0, 0)
    assert (len(extended), len(rendered)) == (1, 1)
    assert second.made_by == first.made_by
    third = deliver(settings(root, shop, "d3", encoding={"max_kb": 900}))
    assert (third.to_extend, third.to_render) == (0, 4), "another file of the same pixels"


def test_a_run_takes_over_what_a_killed_one_painted(root, shop, extended, rendered, monkeypatch):
    publish(root, recipe_id=RECIPE_ID)
    with monkeypatch.context() as broken:
        broken.setattr("adbooster.deliver.job._render", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            deliver(settings(root, shop))
    report = deliver(settings(root, shop, "d2"))
    assert (len(extended), report.to_extend, report.made_by) == (1, 0, {"crop": 1, "extension": 1})


def test_creatives_of_another_recipe_are_not_extended(root, shop, extended):
    publish(root, recipe_id="former")
    report = deliver(settings(root, shop))
    assert (report.to_extend, report.made_by) == (0, {"crop": 1})
    assert report.channels["shop"].empty == {"other_recipe": 1}


def test_without_extend_the_slot_says_what_it_needs(root, shop, extended):
    publish(root, recipe_id=RECIPE_ID)
    report = deliver(config(root, shop))
    assert report.channels["shop"].empty == {"needs_extension": 1}
    assert not extended


def test_a_seam_that_shows_leaves_the_slot_to_another_placement_or_empty(root, shop, extended, monkeypatch):
    """The slot shows what was painted for it, and that of P1, of which nothing was, stays empty."""
    monkeypatch.setattr("adbooster.deliver.extender.extension.seam", lambda *given: 2.5)
    publish(root, products=("P1", "P2"), recipe_id=RECIPE_ID)
    wide, box = Box(160, 90, 80, 100), (420, 220)
    publish(root, products=("P2",), placement="landscape", size=box, box=wide, recipe_id=RECIPE_ID)
    strict = {"max_seam": 2.0, "attempts": 2}
    report = deliver(settings(root, shop, extend=strict))
    assert (report.to_extend, report.extended, report.not_extended) == (2, 0, {"visible_seam": 2})
    assert report.made_by == {"crop": 2, "placement": 1}
    assert report.channels["shop"].empty == {"visible_seam": 1}
    shown = rows(root)["P2", "hero"]
    assert (shown["placement"], shown["refused_why"], shown["extended_uri"]) == ("landscape", ["visible_seam"], None)
    assert [r["attempts"] for r in extended[0].to_pylist()] == [2, 2]
    end(root, "d1")
    again = deliver(settings(root, shop, "d2", extend=strict))
    assert (again.to_extend, again.changed, len(extended)) == (0, 0, 1), "what did not succeed is not tried every night"
    relaxed = deliver(settings(root, shop, "d3"))
    assert (relaxed.to_extend, relaxed.made_by) == (2, {"crop": 2, "extension": 2})


def test_too_many_failures_publish_nothing(root, shop, extended):
    [creative] = publish(root, recipe_id=RECIPE_ID)
    root.write(creative["uri"], images.encode_lossless(np.zeros((240, 240, 3), np.uint8)))
    with pytest.raises(TooManyRejects, match="1 of 1 extensions failed .1 altered_master"):
        deliver(settings(root, shop))
    assert tables.version(root, "deliveries") is None


def canvases(root, names=("a", "b")):
    [creative] = publish(root, recipe_id=RECIPE_ID)
    asked = [
        {
            **{n: creative[n] for n in ("prompt", "layout")},
            "extension_id": name,
            "master_uri": creative["uri"],
            "master_sha256": creative["sha256"],
            "mask_uri": tables.read(root, "samples")["mask_uri"][0].as_py(),
            "negative_prompt": "",
            "text": "a beach",
            "frame": vars(Box(-60, 0, 360, 240)),
            "kept": vars(Box(60, 0, 240, 240)),
            "scale": 64 / 240,
        }
        for name in names
    ]
    asked = schema.fill(pa.Table.from_pylist(asked), schema.EXTENSION_REQUESTS)
    return Framer(root)(asked)


def test_the_same_name_is_the_same_picture_in_any_company(root):
    there, painting = canvases(root), Extension.model_validate(EXTEND).painting(root.uri, "r")
    stage = Extender(painting, 1, None)
    together, alone = stage(there), stage(there.slice(1, 1))
    assert together["painted"][1] == alone["painted"][0]
    assert together["painted"][0] != together["painted"][1], "another name, another seed"
    files = Joiner(root)(together).to_pylist()
    assert files[1]["extended_uri"] == Joiner(root)(alone).to_pylist()[0]["extended_uri"]


def test_what_a_gate_rejects_is_painted_again_with_another_seed(root):
    there = canvases(root, ["a"])
    stage = Extender(Extension.model_validate(EXTEND).painting(root.uri, "r"), 3, None)
    plain, seen = stage(there)["painted"][0], []

    def inspect(pictures, alphas, vectors, texts):
        seen.append((texts, [a.any() for a in alphas]))
        return [("second_copy" if len(seen) < 3 else None, {})]

    stage.inspector.inspect = inspect
    [done] = stage(there).to_pylist()
    assert (done["attempts"], done["reject"]) == (3, None)
    assert done["painted"] != plain.as_py()
    assert seen == [(["a beach"], [True])] * 3
    stage.attempts = 1
    seen.clear()
    assert stage(there)["reject"].to_pylist() == ["second_copy"]


def test_extensions_are_named_by_the_creatives_file_and_the_frame(root, shop):
    publish(root, products=("P1", "P2"), recipe_id=RECIPE_ID)
    work = plan(settings(root, shop), root, load_channels(shop))
    asked = work.extensions.to_pylist()
    assert len({r["extension_id"] for r in asked}) == 2 == len({r["master_sha256"] for r in asked})
    slot = Slot.model_validate(SLOTS["hero"] | {"formats": ["png"], "max_bytes": 9000})
    assert asked[0]["frame"] == vars(frame((240, 240), BOX, slot).frame)
    assert asked[0]["scale"] == 64 / 240
    others = plan(settings(root, shop, extend={"edge_px": 4}), root, load_channels(shop)).extensions
    assert not pc.any(pc.is_in(others["extension_id"], work.extensions["extension_id"].combine_chunks())).as_py()


def test_names_of_crops_are_those_of_before_there_were_extensions(root, shop, rendered, extended):
    publish(root, recipe_id=RECIPE_ID)
    deliver(config(root, shop))
    without = rows(root)["P1", "square"]
    report = deliver(settings(root, shop, "d2"))
    assert rows(root)["P1", "square"] == without
    assert (report.to_render, report.changed) == (1, 1)


def test_a_night_gives_its_models_and_its_weights_to_extensions(tmp_path):
    """`extend: {}` is enough in a file with a section generate; what is given there is kept."""
    path = tmp_path / "night.yaml"
    shared = {n: EXTEND[n] for n in ("weights", "rank_model", "device")}
    sections = {
        "root_uri": str(tmp_path / "root"),
        "prepare": {"feed_uri": "feed.tsv", "mask_model": "m.onnx", "caption_model": "c"},
        "cohorts": {"cohorts_uri": "c.yaml"},
        "generate": shared | {"recipe": RECIPE, "paint_batch": 4},
        "deliver": {"channels": ["web"], "public_base_url": "https://cdn.shop.example", "extend": {"paint_batch": 2}},
    }
    path.write_text(yaml.safe_dump(sections))
    for extend in (
        load(DeliverConfig, ["--config", str(path)]).extend,
        load(NightlyConfig, ["--config", str(path)]).deliver.extend,
    ):
        assert (extend.weights, extend.device, extend.paint_batch) == (EXTEND["weights"], "cpu", 2)
        assert extend.recipe.paint_px == 64
    sections["deliver"].pop("extend")
    path.write_text(yaml.safe_dump(sections))
    assert load(DeliverConfig, ["--config", str(path)]).extend is None


def test_the_weights_of_the_live_creatives_are_taken_from_the_root(root, shop):
    """jobs.deliver alone, after a night that trained: its file names the weights that it began with."""
    publish(root, recipe_id=RECIPE_ID)
    given = settings(root, shop)
    live = tables.read(root, "creatives", ["weights_revision"])
    assert Models(given, given.extend, root, live).painting.weights == EXTEND["weights"]
    root.write("weights/w1/model_index.json", b"{}")
    assert Models(given, given.extend, root, live).painting.weights == f"{root.uri}/weights/w1"


def test_models_are_hashed_only_for_a_frame_that_is_not_known(root, shop, extended, monkeypatch):
    publish(root, recipe_id=RECIPE_ID)
    deliver(settings(root, shop))
    end(root, "d1")
    monkeypatch.setattr("adbooster.deliver.extending.revisions", lambda painting: 1 / 0)
    assert deliver(settings(root, shop, "d2")).changed == 0
    with pytest.raises(ZeroDivisionError):
        deliver(settings(root, shop, "d3", extend={"edge_px": 4}))


def test_every_extension_that_was_refused_is_remembered(root, shop, extended, monkeypatch):
    """The main creative's seam shows, that of another placement does not: the next night paints neither again."""
    publish(root, recipe_id=RECIPE_ID)
    publish(root, placement="portrait", size=(240, 300), box=Box(80, 120, 80, 100), recipe_id=RECIPE_ID)

    def seam(picture, there):
        return 1.0 if there.height_px > 1.1 * there.width_px else 3.0

    monkeypatch.setattr("adbooster.deliver.extender.extension.seam", seam)
    first = deliver(settings(root, shop, extend={"max_seam": 2.0, "attempts": 1}))
    end(root, "d1")
    second = deliver(settings(root, shop, "d2", extend={"max_seam": 2.0, "attempts": 1}))
    assert (first.to_extend, first.extended, first.not_extended) == (2, 1, {"visible_seam": 1})
    assert first.made_by == {"crop": 1, "extension": 1}
    hero = rows(root)["P1", "hero"]
    assert (hero["placement"], hero["refused_why"]) == ("portrait", ["visible_seam"])
    assert (second.to_extend, second.changed) == (0, 0)


def test_one_creative_that_can_never_be_extended_stops_no_later_night(root, shop, extended):
    creatives = publish(root, products=[f"P{i}" for i in range(11)], recipe_id=RECIPE_ID)
    root.write(creatives[0]["uri"], images.encode_lossless(np.zeros((240, 240, 3), np.uint8)))
    first = deliver(settings(root, shop))
    assert (first.to_extend, first.not_extended) == (11, {"altered_master": 1})
    end(root, "d1")
    second = deliver(settings(root, shop, "d2"))
    assert (second.to_extend, second.not_extended, second.changed) == (1, {"altered_master": 1}, 0)


def test_a_product_with_a_new_photo_keeps_its_extended_slot(root, shop, extended):
    publish(root, recipe_id=RECIPE_ID)
    deliver(settings(root, shop))
    before = rows(root)
    samples = tables.read(root, "samples")
    other = samples.set_column(samples.schema.get_field_index("photo_sha256"), "photo_sha256", pa.array(["0" * 64]))
    tables.merge(root, "samples", other, "sample_id", tables.version(root, "samples"), {})
    report = deliver(settings(root, shop, "d2"))
    assert rows(root) == before
    assert (report.to_extend, report.changed, report.made_by) == (0, 0, {"crop": 1, "extension": 1})
