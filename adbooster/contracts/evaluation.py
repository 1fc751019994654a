"""The results of evaluating and learning: the contract between `evaluate` and `learn`, which write them, and the page."""

from datetime import date
from typing import NamedTuple

from pydantic import BaseModel


class Interval(BaseModel):
    """A figure and its 95 % confidence interval; the ends are null where there is too little to resample."""

    mean: float
    low: float | None = None
    high: float | None = None


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
    """All results of an evaluation; runs/<run_id>/evaluation.json."""

    run_id: str
    judge: str
    """content hash of the model that never ranks"""
    rank: str
    experiments: list[Experiment] = []
    figures: list[Figure] = []
    notes: list[str] = []


class LiftDay(BaseModel):
    """All outcomes up to a day."""

    day: date
    lift: Interval | None
    """relative: 0.1 is 10 % more clicks an impression than the originals; null: no click on the originals yet"""
    difference: Interval
    """of click-through rates"""


class GroupLift(BaseModel):
    """Creatives against originals in one family of cohorts, or in all."""

    family: str
    """or `all`"""
    pairs: int
    """pairs of product and cohort that creatives were shown for"""
    control_pairs: int
    """pairs that were shown the original"""
    impressions: int
    control_impressions: int
    clicks: int
    control_clicks: int
    lift: Interval | None = None
    difference: Interval | None = None
    sure: bool = False
    """whether the interval of the lift leaves out 0"""
    note: str = ""
    """why there is no interval; empty: there is one"""
    path: list[LiftDay] = []


class Lift(BaseModel):
    """The lift over originals. Every interval holds with 95 % on all days together, each family by itself."""

    together: GroupLift
    families: list[GroupLift] = []
    robot_clicks: int = 0
    """clicks that were not counted"""


COPY = 0.9  # cosine (judge) with the product from which another salient thing is counted as a second copy


class Kind(NamedTuple):
    """What a figure is; `better` 1: more is better, -1: less is better, 0: neither."""

    unit: str
    better: int
    meaning: str


KINDS = {
    "judge_score": Kind("cosine", 1, "similarity to the user's text by the CLIP that never ranked"),
    "rank_score": Kind("cosine", 1, "the same by the CLIP that chose the creative"),
    "product_max_diff": Kind("levels", -1, "largest difference of the stored product from its photo, 0-255"),
    "product_psnr": Kind("dB", 1, "of the stored product inside its eroded mask; 99: equal"),
    "expansion_share": Kind("share", -1, "area by which the product seems to have grown (union form, re-segmented)"),
    "second_copies": Kind("share", -1, f"pictures with another salient thing like the product (cosine over {COPY})"),
    "people": Kind("probability", -1, "people in the scene, zero-shot by the judge"),
    "text_in_scene": Kind("probability", -1, "writing or logos in the scene, zero-shot by the judge"),
    "duplicates_of_cohort": Kind("share", -1, "scenes equal to a better one of the same cohort"),
    "duplicates_of_product": Kind("share", -1, "scenes equal to a better one of the same product"),
    "near_duplicates_of_cohort": Kind("share", -1, "scenes nearly equal to a better one of the same cohort"),
    "near_duplicates_of_product": Kind("share", -1, "scenes nearly equal to a better one of the same product"),
    "diversity_of_cohort": Kind("cosine distance", 1, "mean between two scenes of a cohort, by the judge"),
    "diversity_of_product": Kind("cosine distance", 1, "mean between two scenes of a product, by the judge"),
    "sharpness": Kind("levels", 1, "standard deviation of the background's Laplacian at 320 px"),
    "exposure": Kind("0-1", 0, "mean luminance of the background"),
    "clipped_share": Kind("share", -1, "background pixels that are black or white"),
    "fallbacks": Kind("share", -1, "requests answered by the original picture"),
    "gpu_s": Kind("s", -1, "seconds of a painting actor a request, scoring included"),
}
