"""Checks of whatever paints, that run before a model is loaded."""

from pathlib import Path

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Adapter
from adbooster.painting.config import PaintingConfig
from adbooster.storage.mask_models import check_mask_model
from adbooster.storage.model_store import local_copy, refuse_pickles


def check_models(config: PaintingConfig) -> None:
    """raises ConfigError for a model that is missing, cannot be read, does not fit the recipe, or that a gate lacks"""
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


def _adapter(adapter: Adapter) -> Path:
    path = local_copy(adapter.uri)
    if path.suffix != ".safetensors":
        raise ConfigError(f"the adapter {adapter.uri} is not a .safetensors file")
    return path
