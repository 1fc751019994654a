"""What a model's folder must hold, checked by its configuration files; nothing is loaded."""

import json
from collections.abc import Iterable
from pathlib import Path

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe

INPAINT_CHANNELS = 9  # noisy latents 4, paint mask 1, masked-image latents 4
FAMILIES = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
PREDICTIONS = ("epsilon", "v_prediction")


def check_weights(path: Path) -> None:
    """raises ConfigError unless the folder is an inpainting pipeline in diffusers layout; loads nothing"""
    config = path / "unet" / "config.json"
    if not config.is_file():
        raise ConfigError(f"the weights {path} have no unet/config.json; give a folder in diffusers layout")
    channels = json.loads(config.read_text()).get("in_channels")
    if channels != INPAINT_CHANNELS:
        raise ConfigError(f"the UNet of {path} takes {channels} channels; an inpainting UNet takes {INPAINT_CHANNELS}")
    for part in ("unet", "vae", "text_encoder"):
        if not list((path / part).glob("*.safetensors")):
            raise ConfigError(f"the weights {path} have no safetensors in {part}/")
    for file in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "tokenizer"):
        if not (path / file).exists():
            raise ConfigError(f"the weights {path} have no {file}; give a whole folder in diffusers layout")


def check_recipe(recipe: Recipe, path: Path) -> None:
    """raises ConfigError for a scheduler that diffusers does not have, or a size that the VAE of `path` cannot take"""
    if recipe.scheduler:
        from adbooster.models.outpainter import scheduler_class

        scheduler_class(recipe.scheduler)
    config = json.loads((path / "vae" / "config.json").read_text())
    factor = 2 ** (len(config.get("block_out_channels", [0] * 4)) - 1)
    for name in recipe.placements:
        wide, high = recipe.paint_size(name)
        if wide % factor or high % factor:
            raise ConfigError(
                f"paint_px {recipe.paint_px} is {wide} x {high} px in {name}, and the VAE needs multiples of {factor}"
            )


def check_base(path: Path) -> None:
    """raises ConfigError unless the folder is an inpainting pipeline that can be trained here; loads nothing"""
    check_weights(path)
    family = json.loads((path / "model_index.json").read_text()).get("_class_name")
    if family not in FAMILIES:
        raise ConfigError(f"the base {path} is a {family}; fine-tuning takes {' or '.join(FAMILIES)}")
    prediction = json.loads((path / "scheduler" / "scheduler_config.json").read_text()).get(
        "prediction_type", "epsilon"
    )
    if prediction not in PREDICTIONS:
        raise ConfigError(f"the base {path} predicts {prediction!r}; fine-tuning takes {' or '.join(PREDICTIONS)}")


def architecture(path: Path, lora_rank: int, lora_targets: Iterable[str]) -> dict:
    """What a checkpoint must share with the model it is put into: the UNet's config, and the adapter's shape."""
    config = json.loads((path / "unet" / "config.json").read_text())
    shape = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("sample_size", "dropout")}
    return shape | {"lora_rank": lora_rank, "lora_targets": list(lora_targets) if lora_rank else []}
