import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from adbooster import layout
from adbooster.errors import ConfigError
from adbooster.outpaint import Outpainter, Painting, check_weights
from adbooster.tiny import world
from tests.conftest import MODELS

WEIGHTS = MODELS / "outpaint"
STEPS, GUIDANCE = 4, 3.0


def painting(seed: int, scene: str = "halloween", product: str = "teapot") -> Painting:
    cutout = layout.cut(*world.packshot(product, 256))
    box = layout.place(cutout, 256, seed, (0.4, 0.6), (0.8, 0.93))
    image, mask = layout.paint_inputs(cutout, box, 256, 128)
    return Painting(image, mask, world.caption(product, scene), "text", seed)


@pytest.fixture(scope="module")
def outpainter():
    return Outpainter(WEIGHTS, "cpu", "float32", batch=4, threads=2)


def test_the_same_painting_in_any_company(outpainter):
    """Same seed, same bytes: alone, with others, in another place of the batch."""
    some = [painting(i, scene) for i, scene in enumerate(["winter", "summer", "sailing", "desert", "tennis"])]
    together = outpainter.paint(some, STEPS, GUIDANCE)
    backwards = outpainter.paint(some[::-1], STEPS, GUIDANCE)[::-1]
    alone = outpainter.paint([some[2]], STEPS, GUIDANCE)[0]
    assert np.array_equal(together, backwards)
    assert np.array_equal(together[2], alone)


def test_other_seed_other_text_other_picture(outpainter):
    a, b, c = outpainter.paint([painting(1), painting(2), painting(1, "winter")], STEPS, GUIDANCE)
    assert np.abs(a.astype(int) - b).mean() > 2
    assert np.abs(a.astype(int) - c).mean() > 2


def test_it_paints_what_the_stock_pipeline_paints():
    """The field's own pipeline class, fed the same, is the reference: batches and caches change nothing."""
    ours = Outpainter(WEIGHTS, "cpu", "float32", batch=1, threads=2)
    job = painting(7)
    pipe = StableDiffusionInpaintPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(job.seed))
    theirs = pipe(
        job.prompt,
        image=Image.fromarray(job.image_u8),
        mask_image=Image.fromarray(255 - job.product_mask_u8),
        negative_prompt=job.negative_prompt,
        height=128,
        width=128,
        strength=1.0,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=noise,
        generator=torch.Generator().manual_seed(0),  # it samples the masked picture's latents, we take their mode
        output_type="np",
    ).images[0]
    difference = np.abs(ours.paint([job], STEPS, GUIDANCE)[0] / 255.0 - theirs)
    assert difference.mean() < 0.01


def test_other_weights_other_picture(outpainter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(WEIGHTS, other)
    file = next((other / "unet").glob("*.safetensors"))
    state = load_file(file)
    state["conv_out.weight"] = state["conv_out.weight"] * 0.5
    save_file(state, file)
    before = outpainter.paint([painting(3)], STEPS, GUIDANCE)[0].astype(int)
    after = Outpainter(other, "cpu", "float32", batch=4, threads=2).paint([painting(3)], STEPS, GUIDANCE)[0]
    assert np.abs(before - after).mean() > 2


def test_a_size_the_vae_cannot_take(outpainter):
    odd = Painting(np.zeros((126, 126, 3), np.uint8), np.zeros((126, 126), np.uint8), "a", "", 0)
    with pytest.raises(ConfigError, match="multiple of 4"):
        outpainter.paint([odd], STEPS, GUIDANCE)


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
