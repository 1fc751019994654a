"""The size of a shop and of its nights, as a forecast takes it."""

import math

from pydantic import BaseModel, ConfigDict, Field

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe


class Workload(BaseModel):
    """A shop, what changes of it in a night, and how it is painted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    products: int = Field(ge=1)
    cohorts: int = Field(ge=1)
    churn: float = Field(ge=0, le=1)
    """Share of the products that are new or changed in a night; all requests of such a product are painted."""
    cohorts_a_product: float = Field(gt=0)
    """After targeting, the mean."""
    placements: int = Field(default=1, ge=1)
    pictures: float = Field(default=1, ge=1)
    """Photos a product."""
    rounds: float = Field(default=1, ge=1)
    """Times that a request is painted on average, as gates send some to another round."""
    recipe: Recipe = Recipe()

    @property
    def requests(self) -> float:
        """All that should be live."""
        return self.products * self.cohorts_a_product * self.placements

    @property
    def network_steps(self) -> float:
        """Guided steps of one picture that a request costs in a round; a step without guidance is half of one."""
        return network_steps(self.recipe)

    @property
    def kept(self) -> int:
        """Creatives a request."""
        return min(self.recipe.keep, self.recipe.candidates)

    @property
    def finalists(self) -> int:
        """Candidates of a request that are painted to the end in a round."""
        return _left(self.recipe)

    @property
    def scored(self) -> int:
        """Pictures of a request that CLIP scores in a round, previews included."""
        return self.finalists + (self.recipe.candidates if self.recipe.halving.at else 0)

    @property
    def decoded(self) -> int:
        """Pictures that a request decodes in a round, previews included."""
        return self.scored if self.recipe.halving.preview == "vae" else self.finalists


def network_steps(recipe: Recipe) -> float:
    """As of Workload; `cache_every` is not in it, as what it saves depends on the weights."""
    low, high = recipe.guidance_interval
    guided = high - low if recipe.guidance_scale > 1 else 0.0
    at = recipe.halving.at or 1.0
    pictures = recipe.candidates * at + _left(recipe) * (1 - at)
    return pictures * recipe.num_inference_steps * (1 + guided) / 2


def cohorts_a_product(targeting: str, cohorts: int) -> float:
    """Of `all`, `top_n:5`, or `table:3.2`, where a table lists so many cohorts a product on average.

    raises  ConfigError for anything else
    """
    rule, _, number = targeting.partition(":")
    if targeting == "all":
        return cohorts
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if rule not in ("top_n", "table") or not value > 0:
        raise ConfigError(
            f"--targeting {targeting} is none: all, top_n:5, or table:3.2 (cohorts a product on average) are"
        )
    return min(value, cohorts)


def _left(recipe: Recipe) -> int:
    return math.ceil(recipe.candidates * recipe.halving.keep) if recipe.halving.at else recipe.candidates
