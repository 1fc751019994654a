"""Checks of the settings that run before a cluster is used."""

from adbooster.cohorts.cohort_file import read_cohorts
from adbooster.cohorts.config import CohortsConfig
from adbooster.cohorts.interest_log import InterestLog
from adbooster.contracts.errors import ConfigError
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root


def check(config: CohortsConfig) -> None:
    """raises ConfigError if the cohort file or the log, its salt, the text model or the root cannot be used"""
    one_source(config)
    if config.cohorts_uri:
        read_cohorts(config.cohorts_uri, config.signing_key_env)
    else:
        if not config.text_model:
            raise ConfigError("an interest log needs text_model, a CLIP folder that open_clip saved")
        if not (local_copy(config.text_model) / "open_clip_config.json").is_file():
            raise ConfigError(f"the CLIP model {config.text_model} has no open_clip_config.json")
        with InterestLog(config.interests_uri, config.interests) as interest_log:
            interest_log.check(config.clustering.k)
    Root(config.root_uri).check_writable()


def one_source(config: CohortsConfig) -> None:
    """raises ConfigError unless there is a cohort file or a log, and not both"""
    if bool(config.cohorts_uri) == bool(config.interests_uri):
        both = "both are" if config.cohorts_uri else "neither is"
        raise ConfigError(f"--cohorts-uri (a cohort file) or --interests-uri (a log) is required; {both} given")
