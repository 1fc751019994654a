import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, StableDiffusionInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Halving, Recipe, placements
from adbooster.models.files import check_negative_prompt, check_recipe, check_weights
from adbooster.models.outpainter import Outpainter, Painting, stronger
from adbooster.models.previews import Previews
from adbooster.pictures import compositing, cutouts, layout
from adbooster.pictures.images import resize
from adbooster.tiny import world
from tests import tiny_fill, tiny_xl
from tests.conftest import MODELS

WEIGHTS = MODELS / "outpaint"
RECIPE = Recipe(num_inference_steps=4, guidance_scale=3.0, paint_px=128)


def overlay(seed: int, product: str = "teapot", side: int = 128) -> compositing.Overlay:
    cutout = cutouts.cut(*world.packshot(product, 256))
    box = layout.place(cutout, (256, 256), placements()["square"], seed)
    return compositing.overlay(cutout, box, (256, 256), (side, side))


def painting(
    outpainter: Outpainter, seed: int, scene: str = "halloween", product: str = "teapot", side: int = 128
) -> Painting:
    seen = overlay(seed, product, side)
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
    torch.set_num_threads(1)
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
    ours, seen = Outpainter(path, recipe, "cpu", "float32", batch=1), overlay(7, side=64)
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
    with pytest.raises(ConfigError, match="takes 4 channels; an inpainting UNet takes 9"):
        check_weights(tmp_path)
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"in_channels": 9}))
    with pytest.raises(ConfigError, match="no safetensors"):
        check_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache_every": 2}, "cache_every 2 is for UNets"),
        ({"guidance_interval": (0.0, 0.5)}, "guidance_interval saves nothing"),
        ({"scheduler": "DDIMScheduler"}, "FlowMatchEulerDiscreteScheduler, not DDIMScheduler"),
        ({"halving": Halving(at=0.5, keep=0.25), "keep": 2}, "leaves 1 of 4 candidates; recipe.keep is 2"),
        ({"halving": Halving(at=0.5), "num_inference_steps": 1}, "needs num_inference_steps of 2"),
    ],
)
def test_a_recipe_that_a_fill_transformer_cannot_paint_by(fill, change, message):
    check_recipe(RECIPE, fill)
    with pytest.raises(ConfigError, match=message):
        check_recipe(RECIPE.model_copy(update=change), fill)


def test_a_fill_transformer_without_guidance_or_with_a_negative_prompt(fill, tmp_path):
    other = shutil.copytree(fill, tmp_path / "other")
    config = json.loads((fill / "transformer" / "config.json").read_text())
    (other / "transformer" / "config.json").write_text(json.dumps(config | {"guidance_embeds": False}))
    with pytest.raises(ConfigError, match="set guidance_scale to 1"):
        check_recipe(RECIPE, other)
    check_recipe(RECIPE.model_copy(update={"guidance_scale": 1.0}), other)
    check_negative_prompt("", fill)
    check_negative_prompt("text", WEIGHTS)
    with pytest.raises(ConfigError, match="takes no negative prompt"):
        check_negative_prompt("text", fill)
    painter = Outpainter(fill, RECIPE, "cpu", "float32", 1)
    with pytest.raises(ConfigError, match="no negative prompt, and 'text' was given"):
        painter.paint([painting(painter, 1)])


def test_weights_of_other_kinds_are_named(fill, xl, tmp_path):
    check_weights(fill)
    check_weights(xl)
    config = json.loads((fill / "transformer" / "config.json").read_text())
    plain = shutil.copytree(fill, tmp_path / "plain")
    (plain / "transformer" / "config.json").write_text(json.dumps(config | {"in_channels": 64}))
    with pytest.raises(ConfigError, match="takes 64 channels; a fill transformer takes 288"):
        check_weights(plain)
    half = shutil.copytree(xl, tmp_path / "half")
    shutil.rmtree(half / "text_encoder_2")
    with pytest.raises(ConfigError, match="no safetensors in text_encoder_2"):
        check_weights(half)
    odd = shutil.copytree(WEIGHTS, tmp_path / "odd")
    index = json.loads((odd / "model_index.json").read_text())
    (odd / "model_index.json").write_text(json.dumps(index | {"_class_name": "KandinskyInpaintPipeline"}))
    with pytest.raises(ConfigError, match="are a KandinskyInpaintPipeline; painting takes"):
        check_weights(odd)


def test_a_fill_transformer_paints_sizes_that_are_no_multiple_of_its_patches(fill):
    painter = Outpainter(fill, RECIPE, "cpu", "float32", 1)
    seen = compositing.overlay(
        cutouts.cut(*world.packshot("mug", 256)), layout.Box(30, 100, 60, 60), (144, 256), (72, 128)
    )
    picture = painter.paint([Painting(painter.condition(seen.image, seen.product_mask), "a mug", "", 1)])[0]
    assert picture.shape == (128, 72, 3)


def test_the_size_of_the_picture_is_a_condition_of_sdxl(xl):
    """Text, pooled text and sizes reach the UNet."""
    painter = Outpainter(xl, RECIPE.model_copy(update={"num_inference_steps": 1}), "cpu", "float32", 1)
    seen = []
    forward = painter.family.network.forward
    painter.family.network.forward = lambda *args, **more: (
        seen.append(more["added_cond_kwargs"]) or forward(*args, **more)
    )
    painter.paint([painting(painter, 1, side=64)])
    assert seen[0]["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    assert seen[0]["text_embeds"].shape == (2, tiny_xl.POOLED)


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


SCENES = ("winter", "summer", "sailing", "desert", "tennis", "winter")


def contest(outpainter: Outpainter, side: int = 64) -> list[Painting]:
    """Six candidates, in turn of two requests."""
    return [replace(painting(outpainter, i, scene, side=side), group=i % 2) for i, scene in enumerate(SCENES)]


def halving(**changes) -> Recipe:
    return RECIPE.model_copy(update={"num_inference_steps": 4, "halving": Halving(at=0.5)} | changes)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_survivor_of_halving_is_what_it_would_have_been(scheduler):
    """The weaker half of each request stops; the others change companions, and not a byte."""
    painter = Outpainter(WEIGHTS, halving(scheduler=scheduler), "cpu", "float32", batch=2)
    some = contest(painter)
    whole = painter.paint(some)
    in_full, asked = painter.evaluations, []

    def judge(indices, previews):
        asked.append((indices, [p.shape for p in previews]))
        return [0, 5, 3, 1, 2, 4]

    halved = painter.paint(some, judge)
    assert asked == [(list(range(6)), [(64, 64, 3)] * 6)]
    assert [p is None for p in halved] == [True, False, False, True, False, False]
    assert all(np.array_equal(a, b) for a, b in zip(halved, whole, strict=True) if a is not None)
    steps = in_full / 12
    assert painter.evaluations - in_full == 2 * (6 * (half := round(steps / 2)) + 4 * (steps - half))


def test_halving_a_fill_transformer(fill):
    painter = Outpainter(fill, halving(), "cpu", "float32", batch=4)
    some = [replace(p, negative_prompt="") for p in contest(painter)]
    whole, halved = painter.paint(some), painter.paint(some, lambda indices, _: indices)
    assert [p is None for p in halved] == [True, True, False, False, False, False]
    assert all(np.array_equal(a, b) for a, b in zip(halved, whole, strict=True) if a is not None)


def test_the_better_share_of_each_group_goes_on():
    assert stronger([1, 9, 2, 8, 3], [0, 1, 0, 1, 0], 0.5) == [1, 2, 4]
    assert stronger([5, 5, 5, 5], [0, 0, 0, 0], 0.5) == [0, 1], "the earlier ones of equals"
    assert stronger([0.1], [7], 0.1) == [0]


def late_previews(painter: Outpainter) -> tuple[list[np.ndarray], list[np.ndarray]]:
    seen, some = [], contest(painter, side=128)
    painter.paint(some, lambda indices, previews: seen.extend(previews) or indices)
    return seen, painter.paint(some)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in levels of pictures scaled down: what a preview can be asked for."""
    return np.abs(resize(a, 16, 16).astype(int) - resize(b, 16, 16)).mean()


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        ("", "vae"),
        ("", "half"),
        ("DDIMScheduler", "vae"),
        ("EulerDiscreteScheduler", "vae"),
        ("HeunDiscreteScheduler", "half"),
    ],
)
def test_a_preview_shows_what_is_coming(scheduler, kind):
    """Whatever the scheduler's scale and the prediction: late in the steps it is nearer to its own picture."""
    recipe = halving(scheduler=scheduler, num_inference_steps=6, halving=Halving(at=0.7, preview=kind))
    previews, pictures = late_previews(Outpainter(WEIGHTS, recipe, "cpu", "float32", batch=6))
    own = [distance(a, b) for a, b in zip(previews, pictures, strict=True)]
    others = [distance(a, b) for a, b in zip(previews, pictures[1:] + pictures[:1], strict=True)]
    assert np.mean(own) < 0.6 * np.mean(others)


def test_previews_by_a_small_decoder_and_by_a_linear_map(tmp_path):
    decoder = AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4), decoder_block_out_channels=(4, 4, 4, 4), latent_channels=4
    )
    decoder.save_pretrained(tmp_path / "decoder")
    linear = halving(halving=Halving(at=0.5, preview="linear"))
    ways = [
        Outpainter(WEIGHTS, r, "cpu", "float32", 2, preview=p)
        for r, p in ((halving(), tmp_path / "decoder"), (linear, None))
    ]
    (decoded, pictures), (mapped, _) = (late_previews(w) for w in ways)
    assert [p.shape for p in decoded] == [p.shape for p in mapped] == [p.shape for p in pictures]
    assert not np.array_equal(decoded, mapped)
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="takes 16 channels; the weights have 4"):
        Outpainter(WEIGHTS, halving(), "cpu", "float32", 2, preview=tmp_path / "other")


def test_a_linear_map_finds_a_linear_vae():
    """Where colours are a linear map of latents, that map is what is fitted."""
    mix = torch.tensor([[0.5, 0.1, 0.0], [0.0, 0.4, 0.2], [0.3, 0.0, 0.6]])

    class Linear:
        device, factor = "cpu", 8
        vae = SimpleNamespace(config=SimpleNamespace(latent_channels=3))

        def encode(self, pixels_NCHW):
            return torch.einsum("nchw,ck->nkhw", F.interpolate(pixels_NCHW, scale_factor=1 / 8, mode="area"), mix) - 0.2

    colours = torch.rand(1, 3, 64, 64) * 2 - 1
    preview = Previews(Linear(), "linear")(Linear().encode(colours), (64, 64))[0]
    wanted = F.interpolate(F.interpolate(colours, scale_factor=1 / 8, mode="area"), size=(64, 64), mode="bilinear")
    assert np.abs(preview - (wanted[0].permute(1, 2, 0).numpy() / 2 + 0.5) * 255).max() < 1


def test_memory_that_runs_out_while_halving_changes_no_picture():
    painter = Outpainter(WEIGHTS, halving(), "cpu", "float32", batch=2)
    whole = painter.paint(contest(painter))
    hungry = Outpainter(WEIGHTS, halving(), "cpu", "float32", batch=4)
    hungry.family.network = Hungry(hungry.family.network, most=4)
    halved = hungry.paint(contest(hungry), lambda indices, _: indices)
    assert hungry.batch == 2
    assert all(np.array_equal(a, b) for a, b in zip(halved, whole, strict=True) if a is not None)


@pytest.mark.parametrize("weights", ["sd", "xl"])
def test_cached_steps_run_the_outer_layers_alone(weights, xl):
    """The next picture is near, costs less, and does not depend on its company."""
    path = {"sd": WEIGHTS, "xl": xl}[weights]
    recipe = RECIPE.model_copy(update={"num_inference_steps": 8, "guidance_interval": (0.0, 0.6)})
    plain, cached = (
        Outpainter(path, recipe.model_copy(update={"cache_every": n}), "cpu", "float32", 2) for n in (1, 2)
    )
    middle = []
    cached.family.network.mid_block.register_forward_pre_hook(lambda _, inputs: middle.append(len(inputs[0])))
    some = contest(plain)[:3]
    before, after = plain.paint(some), cached.paint(some)
    assert middle == 2 * [4, 4, 4, 2, 2], "every other step, and where guidance ends"
    share = cached.cached_share
    assert 0 < share < 0.4
    assert cached.evaluations == pytest.approx(3 * (3 * 2 + 2 * 1 + share * (2 * 2 + 1)))
    assert plain.evaluations == 3 * (5 * 2 + 3)
    near = [np.abs(a.astype(int) - b).mean() for a, b in zip(before, after, strict=True)]
    far = [np.abs(a.astype(int) - b).mean() for a, b in zip(before, before[1:] + before[:1], strict=True)]
    assert 0 < np.mean(near) < 0.5 * np.mean(far)
    assert np.array_equal(cached.paint([some[1]])[0], after[1])


def test_a_cached_step_after_a_whole_one_on_the_same_input_gives_the_same(outpainter):
    """What is kept is what the layers in between give."""
    cached = Outpainter(WEIGHTS, RECIPE.model_copy(update={"cache_every": 2}), "cpu", "float32", 1)
    with torch.inference_mode():
        seen, words = torch.randn(2, 9, 16, 16), cached._words(["a", "b"])
        whole, shallow = (cached.family.predict(seen, torch.tensor(500), words, reuse) for reuse in (False, True))
        plain = outpainter.family.predict(seen, torch.tensor(500), words, False)
    assert torch.equal(whole, plain)
    assert torch.equal(whole, shallow)


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


@pytest.mark.parametrize("kind", ["xl", "fill"])
def test_an_adapter_of_the_other_families(kind, xl, fill, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    path = {"xl": xl, "fill": fill}[kind]
    pipe = DiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    network = pipe.transformer if kind == "fill" else pipe.unet
    network.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]))
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) for k, v in get_peft_model_state_dict(network).items()}
    pipe.save_lora_weights(tmp_path, state, weight_name="style.safetensors")
    plain, adapted = (
        Outpainter(path, RECIPE, "cpu", "float32", 1, adapters)
        for adapters in ((), [(tmp_path / "style.safetensors", 1.0)])
    )
    before, after = (p.paint([replace(painting(p, 1, side=64), negative_prompt="")])[0] for p in (plain, adapted))
    assert not np.array_equal(before, after)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["xl", "fill"])
def test_the_other_families_at_their_real_widths(kind, tmp_path):
    """Widths, channels, VAE, text windows and sizes are the published ones; of repeated layers there is one (10 GiB)."""
    from tests import real_size

    write = {"xl": lambda path: real_size.write_xl(path, whole=False), "fill": real_size.write_fill}[kind]
    assert write(tmp_path / "weights") > 800
    recipe = Recipe(num_inference_steps=1, guidance_scale=2.0, paint_px=512)
    painter = Outpainter(tmp_path / "weights", recipe, "cpu", "bfloat16", 1)
    seen = compositing.overlay(
        cutouts.cut(*world.packshot("mug", 512)), layout.Box(130, 200, 160, 160), (512, 512), (512, 512)
    )
    picture = painter.paint([Painting(painter.condition(seen.image, seen.product_mask), "a mug", "", 1)])[0]
    shutil.rmtree(tmp_path / "weights")  # gigabytes
    assert picture.shape == (512, 512, 3)
    assert picture.std() > 0


@pytest.mark.slow
def test_compiled_paints_the_same(outpainter):
    compiled = Outpainter(WEIGHTS, RECIPE, "cpu", "float32", 4, compiled=True)
    a, b = (p.paint([painting(p, 1)])[0].astype(int) for p in (outpainter, compiled))
    assert np.abs(a - b).max() <= 3
