"""The production preset without its weights: models of the real sizes, random weights, the commands a user types."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from adbooster.cli.load import load
from adbooster.contracts.errors import ConfigError
from adbooster.night.config import NightlyConfig
from adbooster.pictures import cutouts, images, layout
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.conftest import write_png

REPO = Path(__file__).parents[2]
SIDE_PX = 512
ON_CPU = ("--device", "cpu", "--threads", "2")
GATES = ("max-expansion-share", "max-copy-similarity", "max-people", "max-text", "min-background-distance")
NO_GATES = tuple(word for gate in GATES for word in (f"--recipe.gates.{gate}", "null"))


def night(*flags: str):
    given = ["--root-uri", "/r", "--prepare.feed-uri", "/feed.tsv", "--cohorts.cohorts-uri", "/cohorts.yaml"]
    return load(NightlyConfig, ["--config", "sd15", *given, *flags])


def test_the_preset_is_a_whole_night_for_gpus(monkeypatch):
    monkeypatch.setenv("ADBOOSTER_MODELS", "s3://shop/models")
    config = night()
    assert {config.prepare.device, config.finetune.device, config.generate.device} == {"cuda"}
    assert config.generate.weights == config.finetune.base == "s3://shop/models/stable-diffusion-inpainting"
    assert config.generate.recipe.size_px > config.generate.recipe.paint_px == 512
    assert night("--generate.weights", "/other").generate.weights == "/other"


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("sd15-lcm", "stable-diffusion-inpainting"),
        ("sdxl", "stable-diffusion-xl-inpainting"),
        ("flux-fill", "flux-fill"),
    ],
)
def test_the_other_presets_are_whole_nights_too(monkeypatch, preset, weights):
    monkeypatch.setenv("ADBOOSTER_MODELS", "s3://shop/models")
    given = ["--root-uri", "/r", "--prepare.feed-uri", "/feed.tsv", "--cohorts.cohorts-uri", "/cohorts.yaml"]
    config = load(NightlyConfig, ["--config", preset, *given])
    assert config.generate.weights == f"s3://shop/models/{weights}"
    assert config.generate.device == "cuda"
    assert (config.finetune is None) == (preset == "flux-fill"), "which is not trained here"
    assert bool(config.generate.prompts.negative_prompt) == (preset != "flux-fill"), "which takes none"
    assert config.generate.recipe.num_inference_steps == {"sd15-lcm": 5, "sdxl": 25, "flux-fill": 28}[preset]


def test_the_preset_without_its_variable(monkeypatch):
    monkeypatch.delenv("ADBOOSTER_MODELS", raising=False)
    with pytest.raises(ConfigError, match=r"ADBOOSTER_MODELS, which prepare\.mask_model in .*sd15\.yaml names"):
        night()


@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # gigabytes


def job(name: str, root: Path, models: Path, *flags: str) -> dict:
    """The report of `python -m jobs.<name> --config sd15 ...`."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", "--config", "sd15", "--root-uri", str(root), *flags],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"ADBOOSTER_MODELS": str(models)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def shop(folder: Path) -> Path:
    """A feed of one product, 195 px on a page of 512: so small that it is published at its own pixels."""
    folder.mkdir()
    photo = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    small, _ = world.packshot("top-hat", 390)
    photo[61:451, 61:451] = small
    write_png(folder / "hat.png", photo)
    (folder / "feed.tsv").write_text("id\ttitle\timage_link\nP1\tA top hat\that.png\n")
    cohort = {"id": "c1", "query": "top hat", "context": "a snowy winter day", "family": "seasons"}
    (folder / "cohorts.yaml").write_text(yaml.safe_dump([cohort]))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_product_through_models_of_the_real_sizes(tmp_path, models):
    from tests import real_size

    sizes = real_size.write_models(models)
    assert sizes == pytest.approx(real_size.MILLIONS, rel=0.002)
    the_files_are_read_as_published(models)
    feed, root = shop(tmp_path / "shop"), tmp_path / "root"
    prepared = job(
        "prepare", root, models, "--feed-uri", f"{feed}/feed.tsv", *ON_CPU, "--mask.gpus", "0", "--caption.gpus", "0"
    )
    assert (prepared["new_or_changed"], prepared["rejects"]) == (1, {})
    assert job("cohorts", root, models, "--cohorts-uri", f"{feed}/cohorts.yaml")["cohorts"] == 1
    flags = ("--paint.gpus", "0", "--dtype", "float32", "--paint-batch", "1", "--recipe.size-px", str(SIDE_PX))
    # The random U2-Net calls everything dark a product: what it would say of a painting means nothing.
    once = ("--recipe.candidates", "1", "--recipe.num-inference-steps", "1", *NO_GATES)
    painted = job("generate", root, models, *ON_CPU, *flags, *once)
    assert (painted["requests"], painted["painted"], painted["published"], painted["coverage"]) == (1, 1, 1, 1.0)
    the_creative_shows_the_photos_pixels(Root(str(root)))


def the_files_are_read_as_published(models: Path) -> None:
    """Weights under the published names reach the models, and the tokenizer in four files is CLIP's own."""
    from open_clip import get_tokenizer
    from transformers import CLIPTextModel, CLIPTokenizer

    pipeline = models / "stable-diffusion-inpainting"
    loaded = dict(CLIPTextModel.from_pretrained(pipeline / "text_encoder").named_parameters())
    with safe_open(pipeline / "text_encoder" / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
        assert len(names) == len(loaded)
        wanted = stored.get_tensor("text_model.encoder.layers.11.mlp.fc2.weight")
    assert any(p.shape == wanted.shape and bool((p == wanted).all()) for p in loaded.values())
    text = "a photo of a top hat, in a snowy winter's day 2026"
    ours = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")(text).input_ids
    assert ours == get_tokenizer(f"local-dir:{models / 'clip-vit-b-32'}")([text])[0][: len(ours)].tolist()


def the_creative_shows_the_photos_pixels(root: Root) -> None:
    sample = tables.read(root, "samples").to_pylist()[0]
    creative = tables.read(root, "creatives").to_pylist()[0]
    assert sample["caption"]
    assert (creative["product_id"], creative["cohort_id"], creative["fallback"]) == ("P1", "c1", False)
    photo, mask = images.decode(root.read(sample["photo_uri"])), images.decode_mask(root.read(sample["mask_uri"]))
    stored, box = images.decode(root.read(creative["uri"])), layout.Box(**creative["layout"])
    assert stored.shape == (SIDE_PX, SIDE_PX, 3)
    ys, xs = np.nonzero(mask > cutouts.ON)
    there = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    solid = mask[there] == 255
    assert solid.sum() > 5000
    assert np.array_equal(stored[box.slices][solid], photo[there][solid]), "at its own size, pixel by pixel"
    around = np.ones(stored.shape[:2], bool)
    around[box.slices] = False
    assert stored[around].std() > 0
    assert (stored[around] != 255).mean() > 0.5, "the surroundings are painted, not the page of the photo"
