"""What can be refused before a cluster is asked for anything."""

from importlib.util import find_spec

from adbooster.contracts.errors import ConfigError
from adbooster.finetune import preference
from adbooster.finetune.checkpoints import check_fits, open_at
from adbooster.finetune.config import FinetuneConfig
from adbooster.models.files import architecture, check_base, check_recipe
from adbooster.prompts.checks import check as check_prompts
from adbooster.storage.model_store import local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check(config: FinetuneConfig) -> None:
    """raises ConfigError for what can be known before a worker starts: weights, settings, pairs, the run to go on from, root"""
    base = local_copy(config.base)
    check_base(base)
    refuse_pickles(base)
    if config.mlflow_uri and find_spec("mlflow") is None:
        raise ConfigError(f"mlflow_uri is {config.mlflow_uri} and mlflow is not installed; pip install mlflow")
    low, high = config.product_scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"product_scale {low}, {high} should be two shares of 0 to 1, the lower first")
    if config.size_px % 8:
        raise ConfigError(f"size_px {config.size_px} should be a multiple of 8")
    if config.resume_from:
        mark = open_at(config.resume_from).latest()
        assert mark is not None  # open_at has seen one
        check_fits(mark, architecture(base, config.lora.rank, config.lora.targets), config.resume_from)
    if config.device == "cuda" and config.latents.placements and not config.latents.encode.gpus:
        raise ConfigError("latents.encode.gpus is 0 and device is cuda; 1 would be right")
    if config.preference.beta:
        _check_preference(config)
    Root(config.root_uri).check_writable()


def _check_preference(config: FinetuneConfig) -> None:
    for name in ("keep_base", "prior"):
        if value := getattr(config, name):
            raise ConfigError(
                f"{name} {value:g} is of learning from scenes; weights that learn from pairs are held to the base by "
                f"preference.beta, so 0 would be right"
            )
    if config.latents.placements:
        raise ConfigError(
            f"latents.placements {config.latents.placements} is of scenes; with preference.beta 0 is right"
        )
    cold = config.preference.cold_start
    if not cold.by:
        preference.check_enough(preference.known_pairs(Root(config.root_uri), config), config.preference)
        return
    model, given = f"{cold.by}_model", preference.scorer(cold)
    if not given or not (local_copy(given) / "open_clip_config.json").is_file():
        raise ConfigError(
            f"preference.cold_start.by {cold.by} needs {model}, a CLIP folder; {given or 'none'} is given"
        )
    refuse_pickles(local_copy(given))
    check_recipe(cold.recipe, local_copy(config.base))
    check_prompts(cold.prompts)
