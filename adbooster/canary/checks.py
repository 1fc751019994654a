"""Checks of the settings that run before a cluster is used."""

from adbooster.canary.config import CanaryConfig
from adbooster.contracts import evaluation
from adbooster.contracts.errors import ConfigError
from adbooster.measure.checks import check_models, check_trials
from adbooster.measure.config import Trial


def check(config: CanaryConfig) -> None:
    """raises ConfigError for models that cannot work and margins of unknown figures"""
    check_models(config)
    named = [w for w in (config.weights, config.against) if w]
    check_trials(config, [Trial(name="canary", weights=w, adapters=config.adapters) for w in named])
    for name in (*config.margins, *config.relative_margins):
        if name not in evaluation.KINDS:
            raise ConfigError(
                f"canary.margins names the unknown figure {name!r}; figures are {', '.join(evaluation.KINDS)}"
            )
