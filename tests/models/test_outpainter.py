import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe, placements
from adbooster.models.files import check_recipe, check_weights
from adbooster.models.outpainter import Outpainter, Painting
from adbooster.pictures import compositing, cutouts, layout
from adbooster.tiny import world
from tests import tiny_fill, tiny_xl
from tests.conftest import MODELS

WEIGHTS = MODELS / "outpaint"
RECIPE = Recipe(num_inference_steps=4, guidance_scale=3.0, paint_px=128)


def overlay(seed: int, product: str = "teapot") -> compositing.Overlay:
    cutout = cutouts.cut(*world.packshot(product, 256))
    box = layout.place(cutout, (256, 256), placements()["square"], seed)
    return compositing.overlay(cutout, box, (256, 256), (128, 128))


def painting(outpainter: Outpainter, seed: int, scene: str = "halloween", product: str = "teapot") -> Painting:
    seen = overlay(seed, product)
    condition = outpainter.condition(seen.image, seen.product_mask)
    return Painting(condition, world.caption(product, scene), "text", seed)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return tiny_xl.write_pipeline(tmp_path_factory.mktemp("models") / "xl", WEIGHTS / "tokenizer")


@pytest.fixture(scope="module")
def fill(tmp_path_factory):
    return tiny_fill.write_pipeline(tmp_path_factory.mktemp("models") / "fill", WEIGHTS / "tokenizer")


@pytest.fixture(scope="module")
def outpainter():
    torch.set_num_threads(2)
    return Outpainter(WEIGHTS, RECIPE, "cpu", "float32", batch=4)


def test_the_same_painting_in_any_company(outpainter):
    """Same seed, same bytes: alone, with others, in another place of the batch."""
    some = [
        painting(outpainter, i, scene) for i, scene in enumerate(["winter", "summer", "sailing", "desert", "tennis"])
    ]
    together = outpainter.paint(some)
    backwards = outpainter.paint(some[::-1])[::-1]
    alone = outpainter.paint([some[2]])[0]
    assert np.array_equal(together, backwards)
    assert np.array_equal(together[2], alone)


def test_other_seed_other_text_other_picture(outpainter):
    a, b, c = outpainter.paint([painting(outpainter, *a) for a in ((1,), (2,), (1, "winter"))])
    assert np.abs(a.astype(int) - b).mean() > 2
    assert np.abs(a.astype(int) - c).mean() > 2


def stock(path: Path, recipe: Recipe, job: Painting, seen: compositing.Overlay, monkeypatch) -> np.ndarray:
    """The field's own pipeline class on the same pixels and noise; float [H,W,3] in 0-1."""
    # It samples the masked picture's latents, we take their mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda latents, *_, **__: latents.mode())
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    if recipe.scheduler:
        pipe.scheduler = getattr(diffusers, recipe.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    more = {} if "Fill" in type(pipe).__name__ else {"negative_prompt": job.negative_prompt or None}
    more |= {"max_sequence_length": tiny_fill.TOKENS} if "Fill" in type(pipe).__name__ else {}
    high, wide = seen.product_mask.shape
    return pipe(
        job.prompt,
        image=torch.from_numpy(seen.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1,
        mask_image=torch.from_numpy(seen.product_mask < 128).float()[None, None],
        height=high,
        width=wide,
        strength=1.0,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed),
        output_type="np",
        **more,
    ).images[0]


def the_stock_pipeline_paints_the_same(path: Path, recipe: Recipe, negative_prompt: str, monkeypatch) -> None:
    """Exactly; and a guidance that is off by 0.05 shows."""
    ours, seen = Outpainter(path, recipe, "cpu", "float32", batch=1), overlay(7)
    job = Painting(ours.condition(seen.image, seen.product_mask), "a teapot in the snow", negative_prompt, 7)
    theirs = (stock(path, recipe, job, seen, monkeypatch) * 255).round().astype(np.uint8)
    assert np.array_equal(ours.paint([job])[0], theirs)
    if recipe.guidance_scale > 1:
        ours.recipe = recipe.model_copy(update={"guidance_scale": recipe.guidance_scale + 0.05})
        ours.family.recipe = ours.recipe
        assert not np.array_equal(ours.paint([job])[0], theirs)


SCHEDULERS = ("", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
SCHEDULERS += ("UniPCMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_paints_what_the_stock_pipeline_paints(scheduler, guidance, monkeypatch):
    recipe = RECIPE.model_copy(update={"scheduler": scheduler, "guidance_scale": guidance})
    the_stock_pipeline_paints_the_same(WEIGHTS, recipe, "text", monkeypatch)


@pytest.mark.parametrize("negative_prompt", ["", "text"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("scheduler", ["", "DPMSolverMultistepScheduler", "LCMScheduler"])
def test_sdxl_paints_what_the_stock_pipeline_paints(xl, scheduler, guidance, negative_prompt, monkeypatch):
    """No negative prompt is zeros, not an empty text."""
    recipe = RECIPE.model_copy(update={"scheduler": scheduler, "guidance_scale": guidance})
    the_stock_pipeline_paints_the_same(xl, recipe, negative_prompt, monkeypatch)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 30.0])
def test_a_fill_transformer_paints_what_the_stock_pipeline_paints(fill, guidance, monkeypatch):
    recipe = RECIPE.model_copy(update={"guidance_scale": guidance})
    the_stock_pipeline_paints_the_same(fill, recipe, "", monkeypatch)


def test_other_weights_other_picture(outpainter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(WEIGHTS, other)
    file = next((other / "unet").glob("*.safetensors"))
    state = load_file(file)
    state["conv_out.weight"] = state["conv_out.weight"] * 0.5
    save_file(state, file)
    before = outpainter.paint([painting(outpainter, 3)])[0].astype(int)
    changed = Outpainter(other, RECIPE, "cpu", "float32", batch=4)
    after = changed.paint([painting(changed, 3)])[0]
    assert np.abs(before - after).mean() > 2


def test_a_size_the_vae_cannot_take(outpainter):
    with pytest.raises(ConfigError, match="multiples of 8"):
        outpainter.condition(np.zeros((126, 126, 3), np.uint8), np.zeros((126, 126), np.uint8))
    with pytest.raises(ConfigError, match="paint_px 126"):
        check_recipe(Recipe(paint_px=126), WEIGHTS)


def test_weights_that_cannot_inpaint_are_named(tmp_path):
    with pytest.raises(ConfigError, match="diffusers layout"):
        check_weights(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"in_channels": 4}))
    with pytest.raises(ConfigError, match="takes 4 channels"):
        check_weights(tmp_path)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"in_channels": 9}))
    with pytest.raises(ConfigError, match="no safetensors"):
        check_weights(tmp_path)


@pytest.mark.parametrize("batch", [1, 16])
def test_batches_of_1_4_and_16_paint_the_same(outpainter, batch):
    """Other batch sizes run other kernels: what they differ by is rounding, at most 3 of 255 levels anywhere."""
    some = [painting(outpainter, i, scene) for i, scene in enumerate(["winter", "summer", "sailing"])]
    other = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", batch=batch)
    for a, b in zip(outpainter.paint(some), other.paint(some), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 3


def test_shapes_mix_in_one_call(outpainter):
    tall = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", batch=2)
    seen = compositing.overlay(
        cutouts.cut(*world.packshot("mug", 256)), layout.Box(30, 100, 60, 60), (144, 256), (72, 128)
    )
    odd = Painting(tall.condition(seen.image, seen.product_mask), "a mug", "", 1)
    square = painting(tall, 2)
    pictures = tall.paint([odd, square, odd])
    assert [p.shape for p in pictures] == [(128, 72, 3), (128, 128, 3), (128, 72, 3)]
    assert np.array_equal(pictures[0], pictures[2])


class Hungry(torch.nn.Module):
    """A UNet on a device that holds `most` samples at once."""

    def __init__(self, unet, most):
        super().__init__()
        self.unet, self.most = unet, most

    def forward(self, x, *args, **kwargs):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.unet(x, *args, **kwargs)


def test_out_of_memory_halves_the_batch_and_goes_on():
    painter = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", batch=8)
    some = [painting(painter, i) for i in range(3)]
    painter.family.network = Hungry(painter.family.network, most=4)  # guidance doubles: four samples are two paintings
    assert len(painter.paint(some)) == 3
    assert painter.batch == 2
    painter.family.network.most = 1
    with pytest.raises(torch.OutOfMemoryError):
        painter.paint(some)


def test_the_scheduler_of_the_recipe_paints(outpainter):
    """Another sampler paints another picture; one that draws noise draws each candidate's own."""
    euler = RECIPE.model_copy(update={"scheduler": "EulerAncestralDiscreteScheduler"})
    stage = Outpainter(WEIGHTS, euler, "cpu", "float32", batch=2)
    a, b, c = (painting(stage, i) for i in (1, 2, 3))
    together, alone = stage.paint([a, b, c]), stage.paint([b])[0]
    assert np.array_equal(together[1], alone)
    assert np.abs(together[0].astype(int) - outpainter.paint([painting(outpainter, 1)])[0]).mean() > 1
    with pytest.raises(ConfigError, match="no scheduler 'Magic'"):
        check_recipe(RECIPE.model_copy(update={"scheduler": "Magic"}), WEIGHTS)


def test_guidance_only_in_its_interval(outpainter):
    """Outside the interval a step costs one forward, inside two."""
    calls = []
    half = RECIPE.model_copy(update={"guidance_interval": (0.0, 0.5)})
    stage = Outpainter(WEIGHTS, half, "cpu", "float32", batch=1)
    stage.family.network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    changed = stage.paint([painting(stage, 1)])[0]
    assert calls == [2, 2, 1, 1]
    assert np.abs(changed.astype(int) - outpainter.paint([painting(outpainter, 1)])[0]).mean() > 0.1


def lora(path, scale: float):
    """A LoRA file in diffusers layout for the attention of a UNet, its values random."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionInpaintPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, safety_checker=None)
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]))
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) * scale for k, v in get_peft_model_state_dict(pipe.unet).items()}
    StableDiffusionInpaintPipeline.save_lora_weights(path.parent, state, weight_name=path.name)


def test_an_adapter_changes_the_picture_or_is_refused(outpainter, tmp_path):
    lora(tmp_path / "style.safetensors", 0.3)
    before = outpainter.paint([painting(outpainter, 1)])[0].astype(int)
    adapted = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", 4, [(tmp_path / "style.safetensors", 1.0)])
    assert np.abs(adapted.paint([painting(adapted, 1)])[0] - before).mean() > 1
    none = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", 4, [(tmp_path / "style.safetensors", 0.0)])
    assert np.abs(none.paint([painting(none, 1)])[0] - before).max() <= 1
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="adapter"):
        Outpainter(WEIGHTS, RECIPE, "cpu", "float32", 4, [(tmp_path / "other.safetensors", 1.0)])


@pytest.mark.slow
def test_compiled_paints_the_same(outpainter):
    compiled = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", 4, compiled=True)
    a, b = (p.paint([painting(p, 1)])[0].astype(int) for p in (outpainter, compiled))
    assert np.abs(a - b).max() <= 3
