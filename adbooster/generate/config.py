"""Settings and report of `jobs.generate`."""

from datetime import date
from typing import Any

from pydantic import BaseModel, Field

from adbooster.contracts.settings import Config, Uri
from adbooster.experiments.config import Experiment, Holdout
from adbooster.generate.marks import MarkFigures
from adbooster.painting.config import BrandFigures, PaintingConfig, Targeting
from adbooster.prompts.config import PromptFigures, Prompting
from adbooster.report.uplift import Uplift
from adbooster.seeing.config import Seeing, SeeingFigures


class Value(Config):
    """What makes one request worth more than another, for nights that cannot paint all."""

    classes_first: bool = True
    """Whether new products come before all, then creatives below what is expected, new places, and the rest; the value orders
    each class. Off: the value alone decides."""
    product_weight: float = Field(default=1.0, ge=0, le=4)
    """Power of the product's weight in the feed (null counts as 1); 0: it does not count."""
    cohort_size: float = Field(default=1.0, ge=0, le=4)
    """Power of the cohort's users over the mean of all cohorts; 0: they do not count."""
    age: float = Field(default=0.0, ge=0, le=4)
    """Power of 1 + days / 30 since what would be replaced was published; 0: it does not count."""
    gain: float = Field(default=1.0, ge=0, le=4)
    """Power of the factor for the expected gain in margin, 10^(g / (1 + |g|)), g in standard deviations of all margins; 0: it
    does not count."""
    prior: float = Field(default=20.0, gt=0)
    """Live creatives as which the mean of all counts in the mean that is expected of a family and category."""


class GenerateConfig(PaintingConfig):
    """Settings of `jobs.generate`."""

    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    targeting: Targeting = Targeting()
    """Which cohorts a product is painted for."""
    brand_rules_uri: Uri = ""
    """A YAML file of rules that forbid pairs of product and cohort: they are not painted, and what is live of them leaves."""
    brand_rules_day: date | None = None
    """The day (2026-12-27) that rules with dates are compared with; null: the day of the deadline, or today. A run that is
    resumed keeps its day."""
    holdout: Holdout = Holdout()
    """Pairs that keep the original picture, so that the lift of creatives can be told; what is live of them leaves."""
    experiments: tuple[Experiment, ...] = ()
    """Ways to write prompts that pairs are divided among, each experiment for itself."""
    deadline: str = ""
    """When painting stops, and what is complete is published: 06:30 (this machine's time), 06:30 Europe/Berlin, 5h."""
    publish_s: float = Field(default=60, ge=0)
    """Seconds before the deadline that are kept for publishing."""
    gpu_hours: float | None = Field(default=None, ge=0)
    """GPU-hours of painting (as in `gpu_s`) after which painting stops."""
    value: Value = Value()
    """Which requests are painted first under a deadline or budget."""
    min_coverage: float = Field(default=0.95, ge=0, le=1)
    """With a smaller share of requests filled nothing is published; older creatives that are still live count."""
    part_rows: int = Field(default=250_000, ge=1)
    """Requests that the driver plans and publishes at one time, some 2 kB of memory each."""
    progress_s: float = Field(default=30, gt=0)
    """Seconds between two lines of progress in the log."""
    gallery: int = Field(default=300, ge=0)
    """Requests whose creatives the page shows; of these small pictures of all candidates are kept."""
    marks_uri: Uri = ""
    """A file of approvals and rejections that the page exported, or a folder of them; empty: only earlier ones."""
    seeing: Seeing | None = None
    """A vision model that looks at what would be published; what it rejects is painted again. null: none looks. It is no part of
    a request's name: nothing that is live is painted anew because of it."""


class GenerateReport(BaseModel):
    """What `jobs.generate` did; counts are requests unless stated otherwise."""

    job: str = "generate"
    run_id: str
    recipe_id: str
    weights_revision: str
    requests: int
    already_live: int
    already_staged: int
    to_paint: int = 0
    sold_out: int = 0
    """Not counted above, as their product cannot be bought and nothing of it is live for them."""
    held_out: int = 0
    """Pairs of product and cohort that keep the original picture (`holdout`); they are no requests."""
    painted: int = 0
    rejected: int = 0
    """Requests that got no creative at all; what is live for them stays."""
    failures: dict[str, int] = {}
    """Of requests that the painter failed on, by reject word; each is described in runs/<run_id>/failures/."""
    stopped: str | None = None
    """What ended painting early: deadline or gpu_hours; null: nothing did."""
    left: int = 0
    """Requests that the next night paints; what is live in their places stays."""
    left_by_value: dict[str, int] = {}
    """Of these, by class of value: new_product, low_margin, new_place, high_margin."""
    left_uri: str | None = None
    """Parquet file of them with their values, most valuable first."""
    left_most_valuable: list[dict[str, Any]] = []
    """The ten most valuable of them with the factors of their value."""
    painted_most_valuable: list[dict[str, Any]] = []
    """The same of what was painted, where something was left."""
    fallbacks: int = 0
    fallback_reasons: dict[str, int] = {}
    candidate_rejects: dict[str, int] = {}
    """Candidates that a gate turned down, by word."""
    repainted_duplicates: int = 0
    published: int = 0
    """Creatives added."""
    retired: int = 0
    """Creatives that are no longer live."""
    coverage: float = 0.0
    cohort_shares: dict[str, float] = {}
    prompts: PromptFigures = PromptFigures()
    brand_rules: BrandFigures = BrandFigures()
    marks: MarkFigures = MarkFigures()
    seeing: SeeingFigures | None = None
    """null: no vision model was asked"""
    uplift: dict[str, Uplift] = {}
    creatives_version: int | None
    gallery_uri: str | None = None
    gpu_s: float = 0.0
    painter_busy: float | None = None
    """Share of the painters' time that networks ran, loading aside; all stages are in runs/<run_id>/stages.json."""
    gpu_hours_estimate: float | None = None
    """For what is to be painted, from seconds measured before; null where nothing was."""
    estimated_from: str | None = None
    suggestion: dict[str, Any] | None = None
    """Of a dry run: actors so that painters never wait, and the length of the night, from the stage times of the last run
    (generate.suggestions.Suggestion); null where none was measured."""
    paint_batch: int | None = None
    """Smallest batch painted in; below the setting where memory ran out."""
    seconds: float = 0.0
