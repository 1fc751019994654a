"""Checks of the settings that run before a cluster is used."""

from adbooster.experiments import outcomes
from adbooster.experiments.config import check_names
from adbooster.learn.config import LearnConfig
from adbooster.reward.checks import check as check_heads
from adbooster.storage.objects import Root


def check(config: LearnConfig) -> None:
    """raises ConfigError if the outcomes file, the experiments, the CLIP of heads or the root cannot be used

    A file that the job would refuse is refused here, before anything else of a night has begun.
    """
    check_names(config.experiments)
    if config.outcomes_uri:
        table = outcomes.read(config.outcomes_uri, config.signing_key_env)
        known = outcomes.known_creatives(Root(config.root_uri))
        if known.num_rows:
            outcomes.join(table, known, config.outcomes_uri, config.max_broken_share, config.day)
    check_heads(config.heads)
    Root(config.root_uri).check_writable()
