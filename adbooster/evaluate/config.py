"""Settings and report of `jobs.evaluate`."""

from pydantic import BaseModel, Field

from adbooster.contracts.evaluation import Evaluation
from adbooster.contracts.settings import Config, Pool, Uri
from adbooster.measure.config import Trial, TrialsConfig
from adbooster.seeing.config import Seeing, SeeingFigures


class Outcomes(Config):
    """An outcomes table and the rule by which creatives are retired."""

    uri: Uri = ""
    """CSV or Parquet, one file, with creative_id, day, impressions, clicks and conversions; one row a creative and day."""
    min_impressions: int = Field(default=1000, ge=1)
    """Creatives shown less often are neither retired nor correlated."""
    retire_below: float = Field(default=0.7, gt=0, le=1)
    """A creative is retired if the upper end of its click-through rate's interval is below this share of the rate of all
    other creatives of its cohort."""


class Sheet(Config):
    """A sheet of pairs to be compared by people."""

    pairs: int = Field(default=0, ge=0, le=1000)
    """Pairs on the sheet; 0: none is made."""
    side_px: int = Field(default=512, ge=64, le=2048)
    """Both pictures of a pair are fitted into a square of this side, so that size and shape reveal nothing."""
    seed: int = 0
    """Another seed, other pairs in another order."""


class EvaluateConfig(TrialsConfig):
    """Settings of `jobs.evaluate`."""

    look: Pool = Pool(batch=16)
    """Actors that read stored creatives back and measure them."""
    most: int = Field(default=2000, ge=0)
    """Live creatives measured, chosen by a hash of their id; 0: none."""
    most_scenes: int = Field(default=1000, ge=0)
    """The catalog's own scenes that FID and KID compare with."""
    trials: tuple[Trial, ...] = ()
    """Weights and prompts to paint the panel with and compare, the first with each of the others."""
    outcomes: Outcomes = Outcomes()
    """What users did."""
    sheet: Sheet = Sheet()
    """A blind side-by-side sheet for people."""
    seeing: Seeing | None = None
    """A vision model that looks at the live creatives that are measured; null: none. To judge the gate of `generate` it should be
    another model than that one."""


class EvaluateReport(BaseModel):
    """What `jobs.evaluate` did."""

    job: str = "evaluate"
    run_id: str
    creatives_version: int | None
    creatives: int
    """Live creatives of rank 0."""
    looked: int = 0
    """Of them measured, now or before."""
    unseen: dict[str, int] = {}
    """Of them not measured, by reject word; `gone`: its product or cohort is no longer in the tables."""
    trials: dict[str, int] = {}
    """Requests measured by trial; in a dry run, those of the panel."""
    to_retire: int = 0
    sheet_pairs: int = 0
    seeing: SeeingFigures | None = None
    """null: no vision model was asked"""
    evaluation_uri: str | None = None
    gallery_uri: str | None = None
    """The run's page, where `generate` made one."""
    notes: list[str] = []
    seconds: float = 0.0
    evaluation: Evaluation | None = Field(default=None, exclude=True)
    """All results; written to runs/<run_id>/evaluation.json, not into the report."""
