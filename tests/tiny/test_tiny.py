"""The tiny world's data and cards; what its models can do is in `python -m adbooster.tiny.check`."""

import csv
import json

import numpy as np
import pytest
import yaml

from adbooster.models.causal_lm import CausalLM
from adbooster.prompts.language_model import strict_schema
from adbooster.tiny import check, texts, world
from tests.conftest import MODELS

FOLDER = MODELS.parent


def test_three_families_fourteen_scenes_and_six_unseen_products():
    assert len(world.SCENES) >= 14
    assert {s.family for s in world.SCENES.values()} == set(world.FAMILIES)
    assert len(world.HELD_OUT) >= 6
    assert len(world.PRODUCTS) >= 30


def test_a_picture_follows_from_its_seed():
    image, mask = world.compose("tennis", "guitar", 128, 5)
    again, _ = world.compose("tennis", "guitar", 128, 5)
    other, _ = world.compose("tennis", "guitar", 128, 6)
    assert np.array_equal(image, again)
    assert not np.array_equal(image, other)
    assert 0.01 < (mask > 127).mean() < 0.5


def test_the_catalog_is_what_the_world_composes():
    from adbooster.pictures import images
    from adbooster.tiny import catalog

    with (FOLDER / "catalog" / "feed.tsv").open() as f:
        feed = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(feed) == len(world.PRODUCTS)
    for row, product in zip(feed, world.PRODUCTS, strict=True):
        stored = images.decode((FOLDER / "catalog" / row["image_link"]).read_bytes())
        assert np.array_equal(stored, world.packshot(product, catalog.SIDE_PX)[0])
        assert len(row["lifestyle_image_link"].split(",")) == catalog.SCENES_EACH


def test_profiles_are_written_for_this_world():
    profiles = yaml.safe_load((FOLDER / "profiles.yaml").read_text())
    assert len(profiles) == 30
    contexts = {c for s in world.SCENES.values() for c in s.contexts}
    assert sum(p["context"] in contexts for p in profiles) <= 3, "profiles are other words than the training texts"


def test_training_texts_never_name_an_unseen_product():
    rng = np.random.default_rng(0)
    said = {texts.training_text(p, s, rng) for p in world.SEEN for s in world.SCENES for _ in range(3)}
    assert not any("teapot" in t or "skateboard" in t or "couch" in t for t in said)


def test_the_language_model_learns_neither_unseen_products_nor_the_profiles_own_words():
    rng = np.random.default_rng(0)
    asked = [json.loads(texts.written_example(rng)[0]) for _ in range(400)]
    assert not {"teapot", "skateboard", "couch"} & {word for a in asked for v in a.values() for word in v.split()}
    profiles = yaml.safe_load((FOLDER / "profiles.yaml").read_text())
    assert len({p["context"] for p in profiles} & {a["situation"] for a in asked}) <= 1


def test_the_language_model_names_the_scene_of_a_profile_it_has_not_seen():
    writer = CausalLM(MODELS / "writer", "cpu", strict_schema())
    assert check.scenes_written_right(writer, products_each=2) >= 0.9


@pytest.mark.parametrize("name", ["outpaint", "rank", "judge", "caption", "mask", "writer"])
def test_every_model_has_a_card(name):
    assert json.loads((MODELS / name / "card.json").read_text())


def test_models_are_small_and_safe():
    files = [p for p in MODELS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 90e6
    assert {p.suffix for p in files} <= {".json", ".txt", ".safetensors", ".onnx"}


@pytest.mark.timeout(280)
def test_the_models_do_their_work():
    """An eighth of the pictures of `python -m adbooster.tiny.check`, with room for so small a sample."""
    for what, figure, bar in check.measure(threads=2, quick=True):
        assert figure >= 0.93 * bar, f"{what}: {figure:.3f}, bar {bar}"
