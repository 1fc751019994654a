import json

import numpy as np
import pyarrow as pa
import pytest

from adbooster import finetune, images, schema, tables
from adbooster.errors import ConfigError
from adbooster.inpainting import Inpainting
from adbooster.objects import local_copy
from adbooster.outpaint import check_weights
from adbooster.tiny import world
from tests.conftest import MODELS, row


@pytest.fixture
def scenes(root):
    """A root with six products in scenes, true masks and captions."""
    rows = []
    for i, (product, scene) in enumerate(zip(world.HELD_OUT[:6], ["winter", "summer", "halloween"] * 2, strict=True)):
        photo, mask = world.compose(scene, product, 160, 10**7 + i)
        rows.append(
            row(
                schema.SAMPLES,
                sample_id=f"s{i}",
                product_id=f"P{i}",
                role="lifestyle",
                caption=world.caption(product, scene),
                photo_uri=root.put(images.encode_lossless(photo), "photo"),
                mask_uri=root.put(images.encode_mask(mask), "png"),
                background="scene",
            )
        )
    tables.merge(root, "samples", pa.Table.from_pylist(rows, schema.SAMPLES), "sample_id", None, {})
    return root


def config(root, **changes):
    settings = {
        "root_uri": root.uri,
        "run_id": "r1",
        "base": str(MODELS / "outpaint"),
        "device": "cpu",
        "workers": 0,
        "threads": 2,
        "size_px": 64,
        "steps": 4,
        "batch": 3,
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        "held_out_share": 0.4,
    }
    return finetune.FinetuneConfig(**settings | changes)


def test_placed_examples_hold_the_whole_product(scenes):
    placer = finetune.Placer(scenes, 64, seed=0)
    rows = finetune.scenic_samples(scenes)
    first = placer(rows).to_pylist()
    assert first == placer(rows).to_pylist()
    for example in first:
        mask = np.frombuffer(example["mask"], np.uint8).reshape(64, 64)
        ys, xs = np.nonzero(mask > 127)
        assert max(np.ptp(ys), np.ptp(xs)) + 1 >= 0.3 * 64
    assert finetune.Placer(scenes, 64, seed=1)(rows).to_pylist() != first


def test_loss_does_not_depend_on_the_run_and_does_on_the_picture(scenes):
    model = Inpainting(local_copy(str(MODELS / "outpaint")), "cpu", 2)
    rows = finetune.examples(finetune.Placer(scenes, 64, 0)(finetune.scenic_samples(scenes)).to_pydict(), 64)
    batch = {k: rows[k][:3] for k in ("image", "mask", "caption")}
    other = {k: rows[k][3:] for k in ("image", "mask", "caption")}
    losses = [
        model.loss(model.unet, b, seed, 0.0).item() for b, seed in ((batch, 1), (batch, 1), (other, 1), (batch, 2))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_training_gives_weights_that_generate_can_use_and_gives_them_once(local_ray, scenes, workers, monkeypatch):
    """In this process, and in a Ray Train worker, which runs in another folder than the one that paths are relative to."""
    monkeypatch.chdir(scenes.base.rsplit("/", 1)[0])
    settings = {"root_uri": "root", "workers": workers}
    report = finetune.finetune(config(scenes, **settings))
    folder = f"weights/{report.weights_revision}"
    card = json.loads(scenes.read(f"{folder}/card.json"))
    assert report.weights == f"{scenes.uri}/{folder}"
    assert card["revision"] == report.weights_revision
    assert card["samples_version"] == 0
    assert report.samples + report.held_out == 6
    assert report.loss_before != report.loss_after
    check_weights(local_copy(report.weights))

    again = finetune.finetune(config(scenes, run_id="r2", **settings))
    assert again.reused
    assert again.weights_revision == report.weights_revision
    assert scenes.names("weights") == [report.weights_revision]


def test_other_settings_and_other_data_are_another_run(scenes):
    rows = finetune.scenic_samples(scenes)
    names = {
        finetune._name(config(scenes), rows),
        finetune._name(config(scenes, learning_rate=1e-4), rows),
        finetune._name(config(scenes, steps=5), rows),
        finetune._name(config(scenes), rows.slice(1)),
        finetune._name(config(scenes, base=str(MODELS / "caption")), rows),
    }
    assert len(names) == 5
    assert finetune._name(config(scenes, run_id="other"), rows) in names


def test_nothing_to_train_on(root):
    with pytest.raises(ConfigError, match="0 pictures with a scene"):
        finetune.finetune(config(root))


def test_a_base_without_inpainting_channels(root):
    with pytest.raises(ConfigError, match="diffusers layout"):
        finetune.check(config(root, base=str(MODELS / "caption")))
