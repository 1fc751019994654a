"""Checks of the settings that run before a cluster is used."""

import math
from datetime import datetime

from pydantic import ValidationError

from adbooster.contracts import deadline
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import first_error
from adbooster.experiments.arms import prompting_of
from adbooster.experiments.config import check_names
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.painting.brand_rules import read_brand_rules
from adbooster.painting.checks import check_models
from adbooster.painting.targeting import read_targeting
from adbooster.prompts.checks import check as check_prompts
from adbooster.seeing.checks import check as check_seeing
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root


def check(config: GenerateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: models, recipe, root; CanaryRefused for a reward
    that is not surely better than CLIP"""
    from adbooster.models.files import check_negative_prompt

    check_prompts(config.prompts)
    _check_experiments(config)
    deadline.parse_deadline(config.deadline, datetime.now().astimezone())
    if config.brand_rules_uri:
        read_brand_rules(config.brand_rules_uri, config.signing_key_env)
    if config.marks_uri:
        marks.read(config.marks_uri, config.signing_key_env)
    if config.seeing:
        check_seeing(config.seeing)
    recipe = config.recipe
    if recipe.keep > recipe.candidates:
        raise ConfigError(f"recipe.keep {recipe.keep} is more than recipe.candidates {recipe.candidates}")
    left = math.ceil(recipe.candidates * recipe.halving.keep) if recipe.halving.at else recipe.candidates
    if recipe.keep > left:
        raise ConfigError(f"recipe.keep {recipe.keep} is more than the {left} candidates that recipe.halving leaves")
    check_models(config)
    check_negative_prompt(config.prompts.negative_prompt, local_copy(config.weights))
    if config.targeting.rule == "table":
        if not config.targeting.table_uri:
            raise ConfigError("targeting.rule table needs targeting.table_uri")
        read_targeting(config.targeting.table_uri, config.signing_key_env)
    Root(config.root_uri).check_writable()


def _check_experiments(config: GenerateConfig) -> None:
    """raises ConfigError for experiments of one name, a family that no cohort is of, and an arm whose prompts cannot be written"""
    check_names(config.experiments)
    if not config.experiments:
        return
    known = set(tables.read(Root(config.root_uri), "cohorts", ["family"])["family"].to_pylist())
    for experiment in config.experiments:
        # A root without cohorts gets them in the same night.
        if known and (unknown := [family for family in experiment.families if family not in known]):
            raise ConfigError(
                f"the experiment {experiment.name!r} names the family {unknown[0]!r}, of which tables/cohorts has no cohort; "
                f"there are {', '.join(sorted(str(family) for family in known))}"
            )
        for arm in experiment.arms:
            try:
                check_prompts(prompting_of(config.prompts, [arm]))
            except ValidationError as e:
                raise ConfigError(
                    f"the arm {arm.name!r} of {experiment.name!r} cannot be used: {first_error(e)}"
                ) from e
