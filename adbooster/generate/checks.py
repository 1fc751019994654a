"""Checks of the settings that run before a cluster is used."""

import math
from datetime import datetime
from pathlib import Path

from adbooster.contracts import deadline
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Adapter
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.painting.brand_rules import read_brand_rules
from adbooster.painting.targeting import read_targeting
from adbooster.prompts.checks import check as check_prompts
from adbooster.storage.mask_models import check_mask_model
from adbooster.storage.model_store import local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check(config: GenerateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: models, recipe, root"""
    from adbooster.models.files import check_negative_prompt, check_recipe, check_weights

    check_prompts(config.prompts)
    deadline.parse_deadline(config.deadline, datetime.now().astimezone())
    if config.brand_rules_uri:
        read_brand_rules(config.brand_rules_uri, config.signing_key_env)
    if config.marks_uri:
        marks.read(config.marks_uri, config.signing_key_env)
    recipe, gates = config.recipe, config.recipe.gates
    if recipe.keep > recipe.candidates:
        raise ConfigError(f"recipe.keep {recipe.keep} is more than recipe.candidates {recipe.candidates}")
    left = math.ceil(recipe.candidates * recipe.halving.keep) if recipe.halving.at else recipe.candidates
    if recipe.keep > left:
        raise ConfigError(f"recipe.keep {recipe.keep} is more than the {left} candidates that recipe.halving leaves")
    shapes = [n for n in ("max_expansion_share", "max_copy_similarity") if getattr(gates, n) is not None]
    if shapes and not config.mask_model:
        raise ConfigError(f"the gate {shapes[0]} needs --mask-model, the .onnx file of a salient-object network")
    weights, rank_model = local_copy(config.weights), local_copy(config.rank_model)
    check_weights(weights)
    check_recipe(recipe, weights)
    check_negative_prompt(config.prompts.negative_prompt, weights)
    if not (rank_model / "open_clip_config.json").is_file():
        raise ConfigError(f"the CLIP model {config.rank_model} has no open_clip_config.json")
    more = [local_copy(uri) for uri in (config.safety_model, config.preview_model) if uri]
    for model in [weights, rank_model, *more, *(_adapter(a) for a in config.adapters)]:
        refuse_pickles(model)
    if config.mask_model:
        check_mask_model(config.mask_model, config.mask_network, config.device)
    if config.targeting.rule == "table":
        if not config.targeting.table_uri:
            raise ConfigError("targeting.rule table needs targeting.table_uri")
        read_targeting(config.targeting.table_uri, config.signing_key_env)
    Root(config.root_uri).check_writable()


def _adapter(adapter: Adapter) -> Path:
    path = local_copy(adapter.uri)
    if path.suffix != ".safetensors":
        raise ConfigError(f"the adapter {adapter.uri} is not a .safetensors file")
    return path
