"""Checks of the settings that run before a cluster is used."""

from adbooster.contracts.errors import ConfigError
from adbooster.prepare import feeds
from adbooster.prepare.config import PrepareConfig
from adbooster.storage.model_store import local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check(config: PrepareConfig) -> None:
    """raises ConfigError for anything that can be known before an actor starts: models, feed, root"""
    mask_model, caption_model = local_copy(config.mask_model), local_copy(config.caption_model)
    refuse_pickles(mask_model)
    refuse_pickles(caption_model)
    if mask_model.suffix != ".onnx":
        raise ConfigError(f"the mask model {config.mask_model} is not an .onnx file")
    feeds.check(config.feed_uri, config.feed_format, config.columns)
    if not config.dry_run:
        Root(config.root_uri).check_writable()
