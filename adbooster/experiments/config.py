"""Settings of what is tried out on people: held-out pairs, arms, and the allocation among variants."""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Config


class Holdout(Config):
    """Pairs of product and cohort that keep the product's original picture, so that the lift of creatives can be told."""

    share: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the pairs, 0-0.5; 0: none is held out."""
    salt: str = Field(default="", max_length=100)
    """Another salt holds out other pairs."""


class Arm(Config):
    """One way to write prompts in an experiment; what is null stays as the section `prompts` says."""

    name: str = Field(pattern="^[a-z0-9_-]{1,40}$")
    """Its name in tables and reports."""
    style: Literal["qc", "llm"] | None = None
    """Prompt style."""
    template: str | None = Field(default=None, max_length=1000)
    """Template of z_QC."""


class Experiment(Config):
    """Arms that pairs of product and cohort are divided among, by a stable hash and the weights of tables/allocations."""

    name: str = Field(pattern="^[a-z0-9_-]{1,40}$")
    """Its name; another name divides anew."""
    arms: tuple[Arm, ...] = Field(min_length=2, max_length=8)
    """What is compared; before anything is learned each has the same share."""
    families: tuple[str, ...] = ()
    """Cohort families it runs in; empty: all."""
    ended: str = ""
    """Name of the arm that all pairs are in since the experiment ended; empty: it runs."""

    @model_validator(mode="after")
    def _arms_are_told_apart(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"the experiment {self.name!r} has two arms of one name: {sorted(names)}")
        if self.ended and self.ended not in names:
            raise ValueError(f"the experiment {self.name!r} ended on {self.ended!r}, which is none of its arms {names}")
        return self


def check_names(experiments: Iterable[Experiment]) -> None:
    """raises ConfigError for two experiments of one name"""
    names = Counter(experiment.name for experiment in experiments)
    if twice := [name for name, n in names.items() if n > 1]:
        raise ConfigError(f"two experiments are called {twice[0]!r}; give each its own name")


class Allocation(Config):
    """How the shares of variants and arms follow from outcomes (Thompson sampling)."""

    floor: float = Field(default=0.1, ge=0, lt=1)
    """Share that is divided evenly among all variants of a place, so that none is never shown."""
    draws: int = Field(default=4000, ge=100, le=1_000_000)
    """Draws from the posterior by which shares are found."""
    seed: int = 0
    """Another seed, other draws; the same seed and outcomes give the same shares."""
    half_life_days: float = Field(default=14.0, gt=0)
    """Outcomes so many days old count half: tastes drift."""
    prior_impressions: float = Field(default=200.0, gt=0)
    """Impressions as which the family's rate counts in a variant's, while its own spread cannot be told."""
    max_ctr_factor: float = Field(default=5.0, gt=1)
    """A creative's day with more than so many times its family's rate is no people's: robots click too. It counts for nothing
    where shares are found, and as an average day in the lift and in what is learned of pictures."""
    max_shift: float = Field(default=0.3, gt=0, le=1)
    """By how much a share may grow or fall from one night to the next."""


class Retirement(Config):
    """Variants that are surely worse than another of their place are replaced by new ones."""

    most: int = Field(default=0, ge=0)
    """Variants retired a night at most, those that lose most clicks first; 0: none."""
    probability: float = Field(default=0.99, gt=0.5, lt=1)
    """Posterior probability of being worse than the place's best, from which a variant is surely worse."""
    min_impressions: int = Field(default=1000, ge=1)
    """Variants shown less often are not retired."""
