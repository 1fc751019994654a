"""Checks of the settings of training heads, that run before a cluster is used."""

from adbooster.contracts.errors import ConfigError
from adbooster.models.clip_input import read_clip_input
from adbooster.reward.config import Heads
from adbooster.storage.model_store import local_copy, refuse_pickles


def check(config: Heads) -> None:
    """raises ConfigError for heads without a CLIP that can be read, and sheets without their key"""
    if not (config.reward.on or config.usability.on):
        return
    if not config.rank_model:
        raise ConfigError("heads are trained on the vectors of `rank_model`, the CLIP that ranks; it is not set")
    model = local_copy(config.rank_model)
    read_clip_input(model)
    refuse_pickles(model)
    if bool(config.usability.sheets_uri) != bool(config.usability.key_uri):
        raise ConfigError("usability.sheets_uri and usability.key_uri belong together; one of them is not set")
