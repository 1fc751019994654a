"""Checks of the settings that run before a cluster is used."""

from collections import Counter

from adbooster.contracts.errors import ConfigError
from adbooster.evaluate.config import EvaluateConfig
from adbooster.experiments.outcomes import read
from adbooster.measure.checks import check_trials
from adbooster.seeing.checks import check as check_seeing


def check(config: EvaluateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: models, trials, outcomes"""
    check_trials(config, config.trials)
    names = Counter(t.name for t in config.trials)
    if repeated := [name for name, n in names.items() if n > 1 or name == "live"]:
        raise ConfigError(
            f"the trial name {repeated[0]!r} is used twice or is `live`, the name of what is live; give each its own"
        )
    if config.outcomes.uri:
        read(config.outcomes.uri, config.signing_key_env)
    if config.seeing:
        check_seeing(config.seeing)
