"""Checks of the settings that run before a model is loaded."""

from collections.abc import Iterable

from adbooster.contracts.errors import ConfigError
from adbooster.measure.config import MeasureConfig, Trial, TrialsConfig
from adbooster.models.files import check_recipe, check_weights
from adbooster.prompts.checks import check as check_prompts
from adbooster.storage.mask_models import check_mask_model
from adbooster.storage.model_store import content_hash, local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check_models(config: MeasureConfig) -> None:
    """raises ConfigError for a model that is missing, cannot be read, or is used both to rank and to judge"""
    paths = {name: local_copy(getattr(config, name)) for name in ("rank_model", "judge_model")}
    for name, path in paths.items():
        if not (path / "open_clip_config.json").is_file():
            raise ConfigError(f"the {name} {getattr(config, name)} has no open_clip_config.json")
        refuse_pickles(path)
    if content_hash(paths["rank_model"]) == content_hash(paths["judge_model"]):
        raise ConfigError(f"judge_model {config.judge_model} is the model that ranks; give another CLIP")
    if config.inception_model and local_copy(config.inception_model).suffix != ".onnx":
        raise ConfigError(f"the model {config.inception_model} is not an .onnx file")
    if config.mask_model:
        check_mask_model(config.mask_model, config.mask_network, config.device)
    Root(config.root_uri).check_writable()


def check_trials(config: TrialsConfig, trials: Iterable[Trial]) -> None:
    """raises ConfigError for weights, recipe or prompts that cannot work"""
    check_models(config)
    for trial in trials:
        weights = local_copy(trial.weights)
        check_weights(weights)
        check_recipe(config.recipe, weights)
        for model in (weights, *(local_copy(a.uri) for a in trial.adapters)):
            refuse_pickles(model)
        check_prompts(trial.prompts)
