"""Settings and report of `jobs.cohorts`."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from adbooster.contracts.settings import Config, JobConfig, Pool, Uri


class Interests(Config):
    """What the columns of the log are called, and how it is read."""

    user_column: str = "user_id"
    """Who; written only as a salted hash."""
    query_column: str = "query"
    """What the user looked for."""
    context_column: str = "context"
    """Season, event, sport..."""
    weight_column: str = "weight"
    """How much a row counts; a log without it, or a row without a value: 1."""
    timestamp_column: str = "timestamp"
    """When: a timestamp, ISO 8601 text (UTC if it names no zone) or a Unix time; a log without it does not decay."""
    half_life_days: float = Field(default=30, gt=0)
    """An interest this much older counts half."""
    max_age_days: float = Field(default=0, ge=0)
    """Rows older than this are left out; 0: none."""
    as_of: str = ""
    """The time from which ages are counted (ISO 8601); rows after it are left out. Empty: the log's newest row."""
    max_texts: int = Field(default=1_000_000, ge=1)
    """Distinct texts kept, those of most users; they are held in memory with their vectors."""
    memory_gib: float = Field(default=4, gt=0)
    """Memory for reading and grouping; what does not fit goes to `scratch`."""
    scratch: str = ""
    """A folder with room for the hashed log (some 40 bytes a row); empty: the system's temporary folder."""


class Clustering(Config):
    """How users become cohorts."""

    k: int = Field(default=0, ge=0)
    """Clusters; 0: chosen within `k_range` by silhouette on a sample."""
    k_range: tuple[int, int] = (5, 100)
    """Smallest and largest number of clusters to choose from."""
    fit_users: int = Field(default=100_000, ge=10)
    """Users that centroids are fitted on (a uniform sample by hash); then all are assigned, and their means are the
    centroids."""
    min_users: int = Field(default=50, ge=1)
    """A cohort with fewer users is merged into its nearest."""
    min_text_users: int = Field(default=5, ge=1)
    """A text that fewer users share never becomes a cohort's text: it may identify them."""
    interests: int = Field(default=5, ge=1, le=50)
    """Top interests kept a cohort."""
    same_cohort: float = Field(default=0.9, ge=-1, le=1)
    """Least cosine between tonight's and last night's centroid at which a cohort keeps its id."""
    keep_text: float = Field(default=0.1, ge=0, le=2)
    """A cohort keeps its text while that is at most this much farther (cosine) from the centroid than the best one."""
    seed: int = 0
    """Another seed may give other clusters."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 2 <= self.k_range[0] <= self.k_range[1]:
            raise ValueError(f"k_range {self.k_range} should be two numbers in rising order, the first at least 2")
        return self


class CohortsConfig(JobConfig):
    """Settings of `jobs.cohorts`: a cohort file or an interest log."""

    cohorts_uri: Uri = ""
    """A file of cohorts: YAML (a list) or Parquet, with id, query, context and optionally family, size and negative."""
    interests_uri: Uri = ""
    """Instead: what users look for, Parquet, CSV or JSONL: a file, a folder or a pattern with *. Needs text_model."""
    interests: Interests = Interests()
    """How the log is read."""
    text_model: Uri = ""
    """The CLIP whose text tower places the texts of the log (a folder that open_clip saved); generate's rank_model."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where the text tower runs; never chosen by what is there."""
    embed: Pool = Pool(batch=512)
    """Actors that embed the log's distinct texts."""
    clustering: Clustering = Clustering()
    """How users become cohorts."""
    family: str = Field(default="interests", max_length=60)
    """Heading of the log's cohorts in reports."""

    @property
    def needs_ray(self) -> bool:
        """A cohort file is read by the driver alone."""
        return bool(self.interests_uri)


class LogFigures(BaseModel):
    """Counts of an interest log."""

    rows: int
    rows_dropped: dict[str, int]
    """By reason."""
    users: int
    texts: int
    """Distinct ones."""
    clusters: int
    """Before small ones were merged."""
    merged: int
    """Clusters that were too small, or had no text that enough users share."""
    kept: int
    """Cohorts that keep last night's id."""
    members_version: int | None = None


class CohortsReport(BaseModel):
    """What `jobs.cohorts` did."""

    job: str = "cohorts"
    run_id: str
    cohorts_before: int
    cohorts: int
    new_or_changed: int
    removed: int
    families: dict[str, int]
    smallest: int
    """Users of the smallest cohort."""
    largest: int
    """Users of the largest cohort."""
    log: LogFigures | None
    cohorts_version: int | None
    seconds: float
