"""What can be refused before a cluster is asked for anything."""

from adbooster.contracts.errors import ConfigError
from adbooster.finetune.checkpoints import check_fits, open_at
from adbooster.finetune.config import FinetuneConfig
from adbooster.models.files import architecture, check_base
from adbooster.storage.model_store import local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check(config: FinetuneConfig) -> None:
    """raises ConfigError for what can be known before a worker starts: weights, settings, the run to go on from, root"""
    from adbooster.finetune import tracking

    base = local_copy(config.base)
    check_base(base)
    refuse_pickles(base)
    tracking.check(config.mlflow_uri)
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
    Root(config.root_uri).check_writable()
