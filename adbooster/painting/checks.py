"""Checks of whatever paints, that run before a model is loaded."""

from pathlib import Path

from adbooster.contracts.errors import CanaryRefused, ConfigError
from adbooster.contracts.recipe import Adapter
from adbooster.painting.config import PaintingConfig
from adbooster.reward.heads import read_card
from adbooster.storage.mask_models import check_mask_model
from adbooster.storage.model_store import content_hash, local_copy, refuse_pickles


def check_models(config: PaintingConfig) -> None:
    """raises ConfigError for a model that is missing, cannot be read, does not fit the recipe, or that a gate lacks, and
    what `check_heads` raises"""
    from adbooster.models.files import check_recipe, check_weights

    shapes = [n for n in ("max_expansion_share", "max_copy_similarity") if getattr(config.recipe.gates, n) is not None]
    if shapes and not config.mask_model:
        raise ConfigError(f"the gate {shapes[0]} needs --mask-model, the .onnx file of a salient-object network")
    weights, rank_model = local_copy(config.weights), local_copy(config.rank_model)
    check_weights(weights)
    check_recipe(config.recipe, weights)
    if not (rank_model / "open_clip_config.json").is_file():
        raise ConfigError(f"the CLIP model {config.rank_model} has no open_clip_config.json")
    more = [local_copy(uri) for uri in (config.safety_model, config.preview_model) if uri]
    for model in [weights, rank_model, *more, *(_adapter(a) for a in config.adapters)]:
        refuse_pickles(model)
    if config.mask_model:
        check_mask_model(config.mask_model, config.mask_network, config.device)
    check_heads(config)


def check_heads(config: PaintingConfig) -> None:
    """raises ConfigError for a head that is missing, of another kind or CLIP, or a usability gate without a threshold;
    CanaryRefused for a reward that is not surely better than CLIP"""
    if config.score == "blend":
        if not config.reward:
            raise ConfigError("score: blend needs `reward`, the folder of a learned score")
        card = read_card(local_copy(config.reward), "reward", content_hash(local_copy(config.rank_model)))
        if not card.surely_better:
            raise CanaryRefused(
                f"the reward {config.reward} is not surely better than CLIP on products held out and is not used: "
                f"{card.gains()}"
            )
    elif config.reward:
        raise ConfigError(f"`reward` names {config.reward} and candidates are chosen by CLIP alone; set score: blend")
    if config.usability:
        card = read_card(local_copy(config.usability), "usability", content_hash(local_copy(config.rank_model)))
        if card.threshold is None:
            raise ConfigError(f"the usability gate {config.usability} has no threshold and is not used: {card.why}")


def _adapter(adapter: Adapter) -> Path:
    path = local_copy(adapter.uri)
    if path.suffix != ".safetensors":
        raise ConfigError(f"the adapter {adapter.uri} is not a .safetensors file")
    return path
