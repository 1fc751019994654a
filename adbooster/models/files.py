"""What a model's folder must hold, checked by its configuration files, and its tokenizer; no network is loaded."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe

CAPTION_PX = 384
INPAINT_CHANNELS = 9  # noisy latents 4, paint mask 1, masked-image latents 4
TRAINABLE = ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline")
FILL = "FluxFillPipeline"
FAMILIES = (*TRAINABLE, FILL)
PREDICTIONS = ("epsilon", "v_prediction")
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers' names of causal language models end
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_weights(path: Path) -> None:
    """raises ConfigError unless the folder is an inpainting pipeline in diffusers layout; loads nothing"""
    family = _family(path)
    fills = family == FILL
    network, encoders = ("transformer" if fills else "unet"), ["text_encoder"]
    encoders += ["text_encoder_2"] if fills or family == TRAINABLE[1] else []
    config = _config(path, network)
    if not config:
        raise ConfigError(f"the weights {path} have no {network}/config.json; give a folder in diffusers layout")
    wanted = _fill_channels(_config(path, "vae")) if fills else INPAINT_CHANNELS
    if (channels := config.get("in_channels")) != wanted:
        what = "a fill transformer" if fills else "an inpainting UNet"
        kind = "transformer" if fills else "UNet"
        raise ConfigError(f"the {kind} of {path} takes {channels} channels; {what} takes {wanted}")
    for part in (network, "vae", *encoders):
        if not list((path / part).glob("*.safetensors")):
            raise ConfigError(f"the weights {path} have no safetensors in {part}/")
    tokenizers = [e.replace("text_encoder", "tokenizer") for e in encoders]
    for file in ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json", *tokenizers):
        if not (path / file).exists():
            raise ConfigError(f"the weights {path} have no {file}; give a whole folder in diffusers layout")
    if family not in FAMILIES:
        raise ConfigError(f"the weights {path} are a {family}; painting takes {', '.join(FAMILIES)}")
    if config.get("time_cond_proj_dim"):
        raise ConfigError(
            f"the UNet of {path} takes guidance as an input (time_cond_proj_dim), which is not supported; "
            "give the plain weights and the few-step adapter made from them"
        )


def check_recipe(recipe: Recipe, path: Path) -> None:
    """raises ConfigError for a recipe that diffusers or the weights of `path` cannot paint by"""
    if recipe.scheduler:
        from adbooster.models.outpainter import scheduler_class

        scheduler_class(recipe.scheduler)
    factor = _factor(_config(path, "vae"))
    for name in recipe.placements:
        wide, high = recipe.paint_size(name)
        if wide % factor or high % factor:
            raise ConfigError(
                f"paint_px {recipe.paint_px} is {wide} x {high} px in {name}, and the VAE needs multiples of {factor}"
            )
    _check_halving(recipe)
    if _family(path) == FILL:
        _check_fill(recipe, path)


def _check_halving(recipe: Recipe) -> None:
    halving = recipe.halving
    if halving.at and recipe.num_inference_steps < 2:
        raise ConfigError(f"halving.at {halving.at} needs num_inference_steps of 2 or more")
    going = math.ceil(halving.keep * recipe.candidates) if halving.at else recipe.candidates
    if halving.at and going < recipe.keep:
        raise ConfigError(
            f"halving.keep {halving.keep} leaves {going} of {recipe.candidates} candidates; recipe.keep is {recipe.keep}"
        )


def _check_fill(recipe: Recipe, path: Path) -> None:
    """Guidance is an input of these transformers, or trained into them: there is no second pass to save on."""
    if recipe.cache_every > 1:
        raise ConfigError(f"cache_every {recipe.cache_every} is for UNets, and {path} is a {FILL}; set it to 1")
    if recipe.guidance_interval != (0.0, 1.0):
        raise ConfigError(f"guidance_interval saves nothing with a {FILL}; leave it at 0.0 to 1.0")
    if not _config(path, "transformer").get("guidance_embeds") and recipe.guidance_scale != 1:
        raise ConfigError(f"the transformer of {path} takes no guidance; set guidance_scale to 1")
    scheduler = recipe.scheduler or _config(path, "scheduler", "scheduler_config.json").get("_class_name", "")
    if not scheduler.startswith("FlowMatchEuler"):
        raise ConfigError(f"a {FILL} is painted with FlowMatchEulerDiscreteScheduler, not {scheduler}")


def check_negative_prompt(negative_prompt: str, path: Path) -> None:
    """raises ConfigError for a negative prompt where the weights of `path` take none"""
    if negative_prompt and _family(path) == FILL:
        raise ConfigError(
            f"the weights {path} are a {FILL}, which takes no negative prompt; set prompts.negative_prompt to an empty text"
        )


def check_base(path: Path) -> None:
    """raises ConfigError unless the folder is an inpainting pipeline that can be trained here; loads nothing"""
    if (family := _family(path)) and family not in TRAINABLE:
        raise ConfigError(f"the base {path} is a {family}; fine-tuning takes {' or '.join(TRAINABLE)}")
    check_weights(path)
    prediction = _config(path, "scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ConfigError(f"the base {path} predicts {prediction!r}; fine-tuning takes {' or '.join(PREDICTIONS)}")


def check_language_model(path: Path) -> None:
    """raises ConfigError unless the folder is a causal language model in transformers layout; loads nothing"""
    config = _config(path, "")
    if not config:
        raise ConfigError(f"the language model {path} has no config.json; give a folder in transformers layout")
    kinds = config.get("architectures") or ["model of no named architecture"]
    if not any(kind.endswith(CAUSAL) for kind in kinds):
        raise ConfigError(
            f"the language model {path} is a {', '.join(kinds)}; scenes take a causal one (...ForCausalLM)"
        )
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise ConfigError(f"the language model {path} has no tokenizer ({' or '.join(TOKENIZERS)})")
    if not list(path.glob("*.safetensors")):
        raise ConfigError(f"the language model {path} has no safetensors")


def _family(path: Path) -> str:
    index = path / "model_index.json"
    return json.loads(index.read_text()).get("_class_name", "") if index.is_file() else ""


def _config(path: Path, part: str, file: str = "config.json") -> dict:
    """A part's configuration; empty where there is none."""
    config = path / part / file
    return json.loads(config.read_text()) if config.is_file() else {}


def _factor(vae: dict) -> int:
    """Pixels a latent, on a side."""
    return 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)


def _fill_channels(vae: dict) -> int:
    """Patches of 2 x 2: noisy and masked latents, and the mask's pixels of each latent."""
    return 4 * (2 * vae.get("latent_channels", 16) + _factor(vae) ** 2)


def caption_input(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the pictures that a BLIP folder's processor makes; BLIP's own where it does not say.

    raises  ConfigError if it says something else
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).is_file():
            try:
                found = json.loads((path / name).read_text())
                size = found.get("image_processor", found).get("size") or {}
                return int(size.get("height", CAPTION_PX)), int(size.get("width", CAPTION_PX))
            except (ValueError, TypeError, AttributeError) as e:
                raise ConfigError(f"{path / name} should give size as height and width in pixels: {e}") from e
    return CAPTION_PX, CAPTION_PX


def architecture(path: Path, lora_rank: int, lora_targets: Iterable[str]) -> dict:
    """What a checkpoint must share with the model it is put into: the UNet's config, and the adapter's shape."""
    config = json.loads((path / "unet" / "config.json").read_text())
    shape = {k: v for k, v in config.items() if not k.startswith("_") and k not in ("sample_size", "dropout")}
    return shape | {"lora_rank": lora_rank, "lora_targets": list(lora_targets) if lora_rank else []}


def token_counter(path: Path) -> Callable[[str], int]:
    """Tokens of a word, without marks of start and end, by the tokenizer in a folder.

    raises ConfigError if the folder holds none that transformers can load
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} holds no tokenizer that transformers can load: {e}") from e
    return lambda word: len(tokenizer(word, add_special_tokens=False)["input_ids"])
