"""Settings and report of `jobs.canary`."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from adbooster.contracts.evaluation import Interval
from adbooster.contracts.recipe import Adapter
from adbooster.contracts.settings import Pool, Uri
from adbooster.measure.config import ComparisonPanel, TrialsConfig
from adbooster.prompts.config import Prompting

MARGINS = {
    "judge_score": 0.02,
    "rank_score": 0.03,
    "product_max_diff": 4.0,
    "expansion_share": 0.05,
    "second_copies": 0.05,
    "people": 0.05,
    "text_in_scene": 0.05,
    "near_duplicates_of_cohort": 0.1,
    "near_duplicates_of_product": 0.1,
    "clipped_share": 0.1,
    "exposure": 0.15,
    "fallbacks": 0.1,
}
RELATIVE_MARGINS = {"sharpness": 0.4, "diversity_of_cohort": 0.3, "diversity_of_product": 0.3}


class CanaryConfig(TrialsConfig):
    """Settings of the canary; in a night's file, what it shares with `generate` is taken from there."""

    inherits: ClassVar = {
        "generate": {
            **TrialsConfig.inherits["generate"],
            "base": "weights",
            "adapters": "adapters",
            "prompts": "prompts",
        }
    }
    weights: Uri
    """The new weights."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on both."""
    against: Uri = ""
    """Weights to compare with; empty: those that the live creatives were painted with, below the root or `base`."""
    base: Uri = ""
    """Weights outside the root that may be the live ones."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    panel: ComparisonPanel = ComparisonPanel(products=12, cohorts=8)
    """The products and cohorts that are painted; what was painted with the live weights is kept from night to night."""
    look: Pool = Pool(batch=16)
    """Actors that measure the catalog's own scenes."""
    rule: Literal["surely_worse", "maybe_worse"] = "surely_worse"
    """surely_worse: refuse a figure that is worse by more than its margin and whose 95 % interval leaves out no change;
    maybe_worse: refuse a figure whose interval reaches beyond its margin, which asks for a larger panel."""
    margins: dict[str, float] = Field(default_factory=lambda: dict(MARGINS))
    """How much worse a figure may become, in its own unit. Figures in neither table are only reported."""
    relative_margins: dict[str, float] = Field(default_factory=lambda: dict(RELATIVE_MARGINS))
    """The same as a share of the figure under the live weights."""


class CanaryFigure(BaseModel):
    """One figure under both weights."""

    name: str
    unit: str
    n: int
    candidate: float
    live: float
    difference: Interval
    margin: float | None
    """in the figure's unit; null: it is only reported"""
    passed: bool


class CanaryReport(BaseModel):
    """The verdict."""

    job: str = "canary"
    run_id: str
    weights: str
    against: str | None
    passed: bool
    reasons: list[str]
    """of the refusal, or why there was nothing to compare"""
    figures: list[CanaryFigure] = []
    seconds: float = 0.0
