"""From tables to heads: what people clicked and rejected, embedded once, trained once, kept below rewards/."""

import json
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.learn.training import train
from adbooster.measure import vectors
from adbooster.measure.vectors import Embedder
from adbooster.models.clip import Clip
from adbooster.pictures import images
from adbooster.reward import sheets
from adbooster.reward.checks import check
from adbooster.reward.config import Heads, RewardTraining, UsabilityTraining
from adbooster.reward.heads import Head
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.tiny import world
from tests.conftest import MODELS, row

PRODUCTS, SIDE = 6, 64
BOX = {"x_px": 16, "y_px": 24, "width_px": 32, "height_px": 32}


def merged(root, name, rows, on):
    wanted = tables.TABLES[name]
    table = pa.Table.from_pylist([row(wanted, **r) for r in rows], wanted)
    return tables.merge(root, name, table, on, tables.version(root, name), {"run_id": "t"})


def picture(root, number):
    content = images.encode_lossless(world.compose(list(world.SCENES)[number % 15], "teapot", SIDE, number)[0])
    return root.put(content, "webp")


@pytest.fixture
def clicked(stocked):
    """Six products with four creatives each for two cohorts; people click on the light, and reject what stands high."""
    sample = tables.read(stocked, "samples").to_pylist()[0]
    photo = {n: sample[n] for n in ("photo_uri", "photo_sha256", "mask_uri", "role")}
    samples = [photo | {"sample_id": f"s{p}", "product_id": f"P{p}"} for p in range(PRODUCTS)]
    merged(stocked, "samples", samples, "sample_id")
    rng, creatives, outcomes, marks = np.random.default_rng(0), [], [], []
    for number in range(PRODUCTS * 4):
        product, cohort, high = f"P{number // 4}", f"c{1 + number % 2}", (number // 2) % 2
        uri = picture(stocked, number)
        name = f"{number:016x}"
        creatives.append(
            {
                "creative_id": name,
                "product_id": product,
                "cohort_id": cohort,
                "placement": "square",
                "text": f"a teapot for {cohort}",
                "photo_sha256": photo["photo_sha256"],
                "clip_score": float(rng.uniform(0.2, 0.3)),
                "layout": BOX | {"y_px": 8 if high else 24},
                "light": {"clash": float(high)},
                "gates": {"people": 0.1},
                "fallback": False,
                "uri": uri,
                "sha256": uri.rsplit("/", 1)[-1].split(".")[0],
                "width": SIDE,
                "height": SIDE,
            }
        )
        for day in (1, 2):
            counts = {"impressions": 1000, "clicks": 20 if high else 60, "conversions": 0}
            facts = {"creative_id": name, "product_id": product, "cohort_id": cohort, "family": "events"}
            share = {"propensity": 0.5, "day": date(2026, 11, day), "outcome_id": f"{name}-{day}", "control": False}
            outcomes.append(counts | facts | share)
        marks.append({"creative_id": name, "mark": "rejected" if high else "approved"})
    merged(stocked, "creatives", creatives, "creative_id")
    control = {"creative_id": "control", "control": True, "outcome_id": "x", "impressions": 10**6, "clicks": 0}
    merged(stocked, "outcomes", [*outcomes, control], "outcome_id")
    merged(stocked, "marks", marks, "creative_id")
    return stocked


@pytest.fixture
def in_process(monkeypatch):
    """The pool of actors as one stage in this process; pools are tested in tests/engine."""

    def stage_parts(rows, root, folder, progress):
        buffer = pa.BufferOutputStream()
        pap.write_table(rows, buffer)
        root.write(f"{folder}/part.parquet", buffer.getvalue().to_pybytes())

    def through(rows, stage, pool, out, failures, **init):
        return schema.check(stage(**init)(rows), out)

    ours = {"preflight": lambda pools: None, "dataset": lambda rows, n: rows}
    for name, made in (ours | {"through": through, "stage_parts": stage_parts}).items():
        monkeypatch.setattr(vectors, name, made)


def settings(**changes):
    few = {"reward": RewardTraining(on=True, least_products=3, components=2, folds=3)}
    few |= {"usability": UsabilityTraining(on=True, least_rejected=5, components=2, folds=3)}
    return Heads(**few | {"rank_model": str(MODELS / "rank"), "device": "cpu"} | changes)


def files(root):
    return {f"{f}/{n}" for f in root.folders("rewards") for n in root.files(f"rewards/{f}")}


def test_outcomes_and_marks_train_heads_once(clicked, in_process):
    rejected = [f"{n:016x}" for n in range(PRODUCTS * 4) if (n // 2) % 2]
    version = tables.version(clicked, "creatives")
    tables.merge(clicked, "creatives", schema.CREATIVES.empty_table(), "creative_id", version, {}, rejected)
    report = train(settings(), clicked, "r1")
    assert (report.creatives, report.unknown, report.notes) == (PRODUCTS * 4, 0, [])
    reward, gate = report.reward, report.usability
    assert (reward.figures.impressions, reward.figures.clicks) == (2000 * PRODUCTS * 4, 160 * PRODUCTS * 2)
    assert reward.figures.marks == PRODUCTS * 4
    assert reward.figures.surely_better
    assert reward.figures.weights["clash"] < 0
    model = content_hash(local_copy(str(MODELS / "rank")))
    for trained, kind in ((reward, "reward"), (gate, "usability")):
        assert trained.revision == content_hash(local_copy(trained.uri))
        Head.load(local_copy(trained.uri), kind, model)
    assert set(Head.load(local_copy(gate.uri)).card.rejected) == set(rejected), "also those that are no longer live"
    kept, stored = files(clicked), tables.version(clicked, "vectors")
    again = train(settings(), clicked, "r2")
    assert [again.reward.revision, again.usability.revision] == [reward.revision, gate.revision]
    assert [again.reward.new, again.usability.new] == [False, False]
    assert (files(clicked), tables.version(clicked, "vectors")) == (kept, stored)
    other = train(settings(reward=RewardTraining(on=True, least_products=3, components=1, folds=3)), clicked, "r3")
    assert other.reward.new
    assert other.reward.revision != reward.revision
    few = train(settings(reward=RewardTraining(on=True, least_products=50)), clicked, "r4")
    assert few.reward is None
    assert "no reward head was trained: clicks and marks are of 6 products" in few.notes[0]


def test_pictures_are_embedded_whole_and_without_their_products(stocked):
    uri = picture(stocked, 3)
    sample = tables.read(stocked, "samples").to_pylist()[0]
    facts = {"creative_id": "c", "layout": BOX, "photo_uri": sample["photo_uri"], "mask_uri": sample["mask_uri"]}
    asked = [
        facts | {"vector_id": "whole", "uri": uri},
        {"creative_id": "c", "layout": BOX, "vector_id": "without photo", "uri": uri},
        {"vector_id": "text", "text": "a teapot"},
        facts | {"vector_id": "gone", "uri": "objects/00/gone.webp"},
    ]
    stage = Embedder(stocked, str(MODELS / "rank"), "cpu", 1)
    table = pa.Table.from_pylist([row(schema.TO_EMBED, **r) for r in asked], schema.TO_EMBED)
    whole, bare, text, gone = stage(table).to_pylist()
    ranker, shown = Clip(MODELS / "rank", "cpu"), images.decode(stocked.read(uri))
    assert whole["vector"] == pytest.approx(ranker.embed_images([shown])[0], abs=1e-5)
    assert bare["vector"] == pytest.approx(whole["vector"], abs=1e-5)
    assert bare["scene_vector"] is None
    assert not np.allclose(whole["scene_vector"], whole["vector"], atol=1e-3)
    assert np.linalg.norm(whole["scene_vector"]) == pytest.approx(1, abs=1e-4)
    assert text["vector"] == pytest.approx(ranker.embed_texts(["a teapot"])[0], abs=1e-6)
    assert (gone["reject"], gone["vector"]) == ("missing_image", None)


def test_sheets_say_which_creatives_lost_to_the_products_own_pictures():
    key = [
        {"pair": n, "creative_side": "left", "creative_id": f"c{n}", "product_id": "p", "cohort_id": "c", "family": "f"}
        | {"against": "neutral"}
        for n in (1, 2, 3)
    ]
    answers = "pair,rater,choice\n1,a,left\n2,a,right\n3,a,same\n"
    more = "pair,rater,choice\n1,b,left\n2,b,left\n3,b,right\n"
    found = sheets.preferred({"a.csv": answers, "b.csv": more}, json.dumps(key))
    assert found == {"c1": (2, 0), "c2": (1, 1), "c3": (0, 1)}
    with pytest.raises(ConfigError, match="answers pair 9"):
        sheets.preferred({"a.csv": "pair,rater,choice\n9,a,left\n"}, json.dumps(key))


def test_settings_that_cannot_train_are_one_sentence(tmp_path):
    check(Heads())
    on = RewardTraining(on=True)
    with pytest.raises(ConfigError, match="rank_model"):
        check(Heads(reward=on))
    with pytest.raises(ConfigError, match="open_clip_config"):
        check(Heads(reward=on, rank_model=str(tmp_path)))
    with pytest.raises(ConfigError, match="belong together"):
        check(settings(usability=UsabilityTraining(on=True, sheets_uri=str(tmp_path))))
    check(settings())
