import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.contracts.settings import Pool
from adbooster.finetune import examples
from adbooster.finetune.config import ADAPTER_FILE, Lora
from adbooster.finetune.inpainting import Aims, InpaintingModel
from adbooster.finetune.rows import PLACED, arrays
from adbooster.finetune.stages import Placer
from adbooster.finetune.trainer import Trainer
from adbooster.finetune.validation import Panel
from adbooster.models import files
from adbooster.models.outpainter import Outpainter, Painting
from tests import tiny_xl
from tests.conftest import MODELS, learning


@pytest.fixture
def batch(scenes):
    """Six placed pictures."""
    config = learning(scenes, aspects=(1.0,))
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    rows = examples.planned_rows(plan, [(i, 0) for i in range(6)])
    return arrays(Placer(scenes, config)(rows))


def some(batch: dict, index: list[int]) -> dict:
    return {k: v[index] if isinstance(v, np.ndarray) else [v[i] for i in index] for k, v in batch.items()}


@pytest.fixture(scope="module")
def model():
    return InpaintingModel(MODELS / "outpaint", "cpu", 2, "float32")


def test_the_loss_of_a_picture_is_its_own(model, batch):
    """It follows from the picture, its caption and its noise, and not from its neighbours."""
    whole = model.losses(model.unet, model.encode(batch)).detach()
    part = model.losses(model.unet, model.encode(some(batch, [4, 1]))).detach()
    assert torch.allclose(part, whole[[4, 1]], rtol=1e-4)
    assert len({round(float(x), 5) for x in whole}) == 6
    for changed in ({"caption": ["x"] * 6}, {"noise_seed": [7] * 6}, {"image": batch["image"][::-1].copy()}):
        assert not torch.allclose(model.losses(model.unet, model.encode(batch | changed)).detach(), whole, rtol=1e-3)


def test_an_unreadable_picture_counts_for_nothing(model, batch):
    without = model.loss(model.unet, model.encode(some(batch, [0, 2]))).item()
    batch["weight"][1] = 0
    assert model.loss(model.unet, model.encode(some(batch, [0, 1, 2]))).item() == pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("at", [0, 1])
def test_a_picture_that_ended_its_process_counts_for_nothing(model, scenes, at):
    """Of such a row nothing is known but its name; the step goes on with the others."""
    config = learning(scenes, aspects=(1.0,))
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    rows = examples.planned_rows(plan, [(i, 0) for i in range(2)])
    placed = Placer(scenes, config)(rows)
    ended = schema.fill(rows.slice(0, 1), PLACED).to_pylist()[0] | {"reject": "crashed"}
    kept = placed.to_pylist()
    with_it = pa.Table.from_pylist([*kept[:at], ended, *kept[at:]], PLACED)
    without = model.loss(model.unet, model.encode(arrays(placed))).item()
    assert model.loss(model.unet, model.encode(arrays(with_it))).item() == pytest.approx(without, rel=1e-4)
    assert arrays(pa.Table.from_pylist([ended], PLACED))["weight"] == [0.0]


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_min_snr_weights_what_the_scheduler_predicts(batch, prediction, tmp_path):
    """An error in epsilon is SNR times that in the picture, one in v SNR + 1 times: both end at min(SNR, gamma)."""
    base = shutil.copytree(MODELS / "outpaint", tmp_path / "base")
    settings = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    settings |= {"prediction_type": prediction, "rescale_betas_zero_snr": False}
    (base / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    model = InpaintingModel(base, "cpu", 2, "float32")
    encoded = model.encode(batch)
    plain, weighted = (model.losses(model.unet, encoded, Aims(gamma)).detach().numpy() for gamma in (0, 5))
    steps = [int(torch.randint(1000, (1,), generator=torch.Generator().manual_seed(s))) for s in encoded.noise_seed]
    alphas = model.noising.alphas_cumprod[steps].numpy()
    snr = alphas / (1 - alphas)
    assert weighted / plain == pytest.approx(np.minimum(snr, 5) / (snr + (prediction == "v_prediction")), rel=1e-3)


def test_the_target_is_what_the_scheduler_predicts(model, batch):
    """A UNet that gives the true velocity has no loss."""
    encoded = model.encode(batch)

    def knows(seen, t_N, states, return_dict):
        noise = torch.stack(
            [
                torch.randn(encoded.x.shape[1:], generator=g)
                for s in encoded.noise_seed
                for g in [torch.Generator().manual_seed(s)]
                if torch.randint(1000, (1,), generator=g) is not None
            ]
        )
        a = model.noising.alphas_cumprod[t_N][:, None, None, None]
        assert torch.allclose(seen[:, :4], a.sqrt() * encoded.x + (1 - a).sqrt() * noise, atol=1e-4)
        assert torch.equal(seen[:, 4:5], encoded.mask)
        assert torch.equal(seen[:, 5:], encoded.masked)
        return (a.sqrt() * noise - (1 - a).sqrt() * encoded.x,)

    assert model.loss(knows, encoded).item() < 1e-8


def test_an_adapter_is_what_the_merged_weights_hold(scenes, batch, tmp_path, packshot):
    """Base and adapter.safetensors, as `generate` reads them, paint what the merged weights paint; the base does not."""
    config = learning(scenes, lora=Lora(rank=4, alpha=8), learning_rate=1e-2, ema_decay=0.0)
    model = InpaintingModel(MODELS / "outpaint", "cpu", 2, "float32", config.lora)
    learner = Trainer(model, config)
    assert 0 < sum(p.numel() for p in learner.parameters.values()) < 2e5
    for _ in range(3):
        learner.step([model.encode(batch)])
    model.save(tmp_path / "w")
    recipe = Recipe(num_inference_steps=2, guidance_scale=1.0, paint_px=64)
    pictures = []
    for path, adapters in (
        (tmp_path / "w", []),
        (MODELS / "outpaint", [(tmp_path / "w" / ADAPTER_FILE, 1.0)]),
        (MODELS / "outpaint", []),
    ):
        painter = Outpainter(path, recipe, "cpu", "float32", 1, adapters)
        condition = painter.condition(batch["image"][0], batch["mask"][0])
        pictures.append(painter.paint([Painting(condition, "a teapot in the snow", "", 1)])[0].astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.5
    assert np.abs(pictures[0] - pictures[2]).mean() > 3


def test_sdxl_by_its_own_config(scenes, batch, tmp_path):
    """Two text encoders, pooled text and sizes; an empty text is zeros; the weights load as an SDXL pipeline again."""
    from diffusers import StableDiffusionXLInpaintPipeline

    base = tiny_xl.write_pipeline(tmp_path / "xl", MODELS / "outpaint" / "tokenizer")
    files.check_base(base)
    config = learning(scenes, base=str(base), learning_rate=1e-3)
    model = InpaintingModel(base, "cpu", 2, "float32")
    batch["caption"] = ["", "a teapot", "a shoe", "a couch", "a hat", "a skirt"]
    encoded = model.encode(batch)
    assert encoded.states.shape[2] == sum(tiny_xl.WIDTHS.values())
    assert encoded.pooled.shape == (6, tiny_xl.POOLED)
    assert not encoded.states[0].any()
    assert encoded.pooled[1].any()
    learner = Trainer(model, config)
    losses = [float(learner.step([encoded])["loss"]) for _ in range(8)]
    assert losses[-1] < losses[0]
    other = encoded._replace(pooled=encoded.pooled + 1)
    assert model.loss(model.unet, other).item() != model.loss(model.unet, encoded).item()
    model.save(tmp_path / "out")
    again = StableDiffusionXLInpaintPipeline.from_pretrained(tmp_path / "out")
    assert again.unet.config.in_channels == 9


def test_a_base_that_cannot_be_trained(tmp_path):
    base = shutil.copytree(MODELS / "outpaint", tmp_path / "base")
    settings = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps(settings | {"in_channels": 4}))
    with pytest.raises(ConfigError, match="takes 4 channels; an inpainting UNet takes 9"):
        files.check_base(base)
    (base / "unet" / "config.json").write_text(json.dumps(settings))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxFillPipeline"}))
    with pytest.raises(ConfigError, match="FluxFillPipeline"):
        files.check_base(base)


def rings(mask_NHW: np.ndarray, aims: Aims) -> tuple[np.ndarray, np.ndarray]:
    """Near the edge, and the weights, of product masks (1 = product)."""
    from adbooster.finetune.inpainting import _near, _weights

    paint = 1 - torch.from_numpy(mask_NHW).float()[:, None]
    near = _near(paint, aims)
    return near[:, 0].numpy(), _weights(paint, near, aims)[:, 0].numpy()


def test_the_loss_counts_more_near_the_edge_and_less_on_the_product():
    product = np.zeros((1, 32, 32), np.float32)
    product[:, 12:20, 12:20] = 1
    near, weight = rings(product, Aims(border_weight=4.0, border_share=0.1, product_weight=0.0))
    assert near.sum() == 14 * 14 - 8 * 8, "three latents round the product"
    assert weight[0, 15, 15] == 0
    assert weight[0, 10, 10] == pytest.approx(4 * weight[0, 0, 0])
    assert weight.mean() == pytest.approx(1)
    assert np.array_equal(rings(product, Aims())[1], np.ones((1, 32, 32)))


def test_keeping_the_base_costs_nothing_at_first_and_pulls_back_later(model, batch):
    """Away from the edge: there a change of the weights is held against them, whatever the picture shows."""
    encoded = model.encode(batch)
    plain = model.losses(model.unet, encoded).detach()
    model.keep_base()
    try:
        assert torch.allclose(model.losses(model.unet, encoded, Aims(keep_base=5.0)).detach(), plain, rtol=1e-4)
        with torch.no_grad():
            model.unet.conv_out.bias += 0.1
        far = 1 - torch.from_numpy(rings(1 - encoded.mask[:, 0].numpy(), Aims())[0]).mean((1, 2))
        moved = model.losses(model.unet, encoded, Aims(keep_base=5.0)).detach()
        without = model.losses(model.unet, encoded).detach()
        assert torch.allclose(moved - without, 5.0 * 0.01 * far, rtol=0.05)
    finally:
        with torch.no_grad():
            model.unet.conv_out.bias -= 0.1
        model.base_unet = None


def test_pictures_of_the_prior_are_learned_from_the_base(model, batch):
    encoded = model.encode(batch | {"prior": np.float32([1, 0, 0, 0, 0, 1])})
    model.keep_base()
    try:
        losses = model.losses(model.unet, encoded, Aims(prior=0.3)).detach()
    finally:
        model.base_unet = None
    assert losses[[0, 5]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert torch.allclose(losses[1:5], model.losses(model.unet, encoded).detach()[1:5])


def test_an_adapter_has_its_base_within_it(batch):
    adapted = InpaintingModel(MODELS / "outpaint", "cpu", 2, "float32", Lora(rank=4))
    adapted.keep_base()
    assert adapted.base_unet is None
    encoded = adapted.encode(batch)
    with torch.no_grad():
        for name, p in adapted.trainable().items():
            p += 0.05 * ("lora_B" in name)
    kept = adapted.losses(adapted.unet, encoded, Aims(keep_base=1.0)).detach()
    assert (kept > adapted.losses(adapted.unet, encoded).detach()).all()


def test_the_prior_shows_pictures_with_texts_of_the_cohorts(scenes):
    config = learning(scenes, prior=0.5, prior_texts=("gift, a snowy winter day",), empty_text_share=0.0)
    plan = examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), config)
    rows = examples.planned_rows(plan, [(i, epoch) for i in range(4) for epoch in range(10)])
    placed = Placer(scenes, config)(rows.filter(pa.array([a == 1.0 for a in rows["aspect"].to_pylist()]))).to_pylist()
    of_prior = [row for row in placed if row["prior"]]
    assert 0.2 < len(of_prior) / len(placed) < 0.8
    assert all(row["caption"].endswith(", gift, a snowy winter day") for row in of_prior)
    assert not any("gift" in row["caption"] for row in placed if not row["prior"])


def test_validation_shows_pictures_with_their_captions_whatever_the_prior(scenes, model):
    """Else the losses of two runs on the same held-out pictures could not be compared."""
    rows = examples.survey(scenes, examples.scenic_samples(scenes), Pool())
    more = {"prior": 0.9, "prior_texts": ("gift, a snowy winter day",)}
    with_prior, without = (Panel(model, learning(scenes, **m), scenes, rows) for m in (more, {}))
    assert (with_prior.losses() == without.losses()).all()
