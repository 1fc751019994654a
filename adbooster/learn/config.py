"""Settings and report of `jobs.learn`, and what it found: runs/<run_id>/learning.json."""

from datetime import date
from typing import ClassVar

from pydantic import BaseModel, Field

from adbooster.contracts.evaluation import Lift
from adbooster.contracts.settings import JobConfig, Uri
from adbooster.experiments.config import Allocation, Experiment, Holdout, Retirement
from adbooster.reward.config import Heads, Trained


class LearnConfig(JobConfig):
    """Settings of `jobs.learn`; in a night's file, what it shares with `generate` is taken from there."""

    inherits: ClassVar = {"generate": {"holdout": "holdout", "experiments": "experiments"}}
    outcomes_uri: Uri = ""
    """CSV or Parquet, one file, with creative_id, day, impressions, clicks, conversions, propensity and perhaps channel; one row
    a creative, day and channel. Empty: what earlier runs have read is learned from."""
    max_broken_share: float = Field(default=0.01, ge=0, le=1)
    """Rows with counts, days or propensities that cannot be, as a share of the file, above which it is refused; below, they are
    left out."""
    day: date | None = None
    """The day (2026-12-27) that it is: outcomes of later days than the next one cannot be. null: today"""
    holdout: Holdout = Holdout()
    """The pairs that keep the original picture: nothing is divided among their variants."""
    experiments: tuple[Experiment, ...] = ()
    """Experiments whose arms get shares."""
    allocation: Allocation = Allocation()
    """How shares follow from outcomes."""
    retirement: Retirement = Retirement()
    """Which variants are replaced."""
    heads: Heads = Heads()
    """What is learned of pictures from outcomes and marks."""

    @property
    def needs_ray(self) -> bool:
        """Whether pictures are embedded."""
        return not self.dry_run and (self.heads.reward.on or self.heads.usability.on)


class AllocationSummary(BaseModel):
    """Shares of variants, over all places (product, cohort and placement) with several."""

    places: int = 0
    variants: int = 0
    mean_largest: float | None = None
    """share of a place's most shown variant, mean over places"""
    decided: int = 0
    """places with a variant that has more than 80 %"""
    entropy: float | None = None
    """mean over places, 0-1: 1 where shares are even"""
    margin_slope: float | None = None
    """by how much log click-through rates rise with the CLIP margin, as used in priors: 0 where outcomes do not support any"""
    strength: float | None = None
    """impressions as which the rate of a place counts in a variant's"""


class ArmShare(BaseModel):
    """One arm of an experiment in one family of cohorts."""

    arm: str
    family: str
    weight: float
    impressions: int
    clicks: int
    ctr: float
    """posterior mean; low and high are its 95 % ends, which take into account that rates differ by pair"""
    ctr_low: float
    ctr_high: float


class ExperimentShares(BaseModel):
    """An experiment with the shares of its arms."""

    name: str
    ended: str = ""
    """the arm that all pairs are in; empty: it runs"""
    arms: list[ArmShare] = []


class RetiredVariant(BaseModel):
    """A variant that is replaced."""

    creative_id: str
    product_id: str
    cohort_id: str
    placement: str
    family: str | None
    best_id: str
    """the variant of its place with the highest rate"""
    impressions: int
    clicks: int
    ctr: float
    best_ctr: float
    probability: float
    """of being worse than the best"""
    lost_clicks: float
    """clicks that the best would have had more on the same impressions, old ones discounted"""


class Learning(BaseModel):
    """What was learned: the contract between `learn`, which writes runs/<run_id>/learning.json, and the page, which shows it."""

    run_id: str
    day: date | None = None
    """the last day of which there are outcomes"""
    outcomes: int = 0
    """rows of tables/outcomes"""
    lift: Lift
    allocation: AllocationSummary = AllocationSummary()
    experiments: list[ExperimentShares] = []
    retired: list[RetiredVariant] = []
    """the 100 that lose most clicks"""
    retired_count: int = 0
    reward: Trained | None = None
    """the learned score; null: none was trained"""
    usability: Trained | None = None
    """the usability gate; null: none was trained"""
    notes: list[str] = []


class LearnReport(BaseModel):
    """What `jobs.learn` did."""

    job: str = "learn"
    run_id: str
    rows: int = 0
    """Rows of the outcomes file."""
    new: int = 0
    """Of them not known before."""
    corrected: int = 0
    """Of them known with other counts."""
    unchanged: int = 0
    broken: int = 0
    """Left out: counts, days or propensities that cannot be."""
    unknown: int = 0
    """Left out: of creatives that are not known here."""
    outcomes: int = 0
    """Rows of tables/outcomes, with those of the file."""
    lift: float | None = None
    """Clicks an impression over the originals of held-out pairs, relative."""
    lift_low: float | None = None
    lift_high: float | None = None
    allocated: int = 0
    """Variants and arms with a share."""
    allocations_changed: bool = False
    """Whether tables/allocations was written; not where nothing new is known."""
    retired: int = 0
    reward_uri: str | None = None
    """The learned score, as `generate.reward` takes it; null: none was trained."""
    usability_uri: str | None = None
    """The usability gate, as `generate.usability` takes it; null: none was trained."""
    learning_uri: str | None = None
    notes: list[str] = []
    seconds: float = 0.0
