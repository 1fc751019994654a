"""Checks of the settings that run before a cluster is used."""

from adbooster.experiments import outcomes
from adbooster.experiments.config import check_names
from adbooster.learn.config import LearnConfig
from adbooster.reward.checks import check as check_heads
from adbooster.storage.objects import Root


def check(config: LearnConfig) -> None:
    """raises ConfigError if the outcomes file, the experiments, the CLIP of heads or the root cannot be used"""
    check_names(config.experiments)
    if config.outcomes_uri:
        outcomes.read(config.outcomes_uri, config.signing_key_env)
    check_heads(config.heads)
    Root(config.root_uri).check_writable()
