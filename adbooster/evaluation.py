"""What an evaluation found: the contract between `evaluate`, which writes it, and the page, which shows it."""

from pydantic import BaseModel

from adbooster.intervals import Interval


class Experiment(BaseModel):
    """Creatives of one kind against the product's own pictures; scores are CLIP cosines with the user's text."""

    experiment: str
    """`live`, or the name of a trial such as `fine-tuned, qc`"""
    scorer: str
    """judge (never ranked anything) or rank (chose the creatives)"""
    pick: str
    """best-of-1, best-of-4..., or published: what is live, originals included"""
    family: str
    """of the cohort, or all"""
    n: int
    """product x cohort pairs"""
    creative: float
    neutral: float
    """BestNeutralImage: the product on white, the one of its pictures that `rank` prefers"""
    contextual: float | None = None
    """BestContextualSetting: the catalog's own scene that `rank` prefers; null where no pair has one"""
    uplift_neutral: Interval | None = None
    """creative / neutral - 1, of means; null where the mean of the baseline is not surely positive"""
    uplift_contextual: Interval | None = None
    """over the pairs whose product has a scene of its own"""
    difference_neutral: Interval | None = None
    difference_contextual: Interval | None = None


class Figure(BaseModel):
    """One thing that was measured."""

    name: str
    unit: str
    n: int
    value: float | None
    low: float | None = None
    high: float | None = None
    meaning: str


class Evaluation(BaseModel):
    """All that an evaluation found; runs/<run_id>/evaluation.json."""

    run_id: str
    judge: str
    """content hash of the model that never ranks"""
    rank: str
    experiments: list[Experiment] = []
    figures: list[Figure] = []
    notes: list[str] = []
