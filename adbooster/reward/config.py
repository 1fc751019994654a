"""Settings of training heads, and what is said of them: held-out figures against CLIP alone."""

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from adbooster.contracts.evaluation import Interval
from adbooster.contracts.settings import Config, Pool, Uri


class HeadTraining(Config):
    """What both heads are trained by."""

    on: bool = False
    """Whether it is trained."""
    most: int = Field(default=20_000, ge=10)
    """Creatives that it is trained on at most, chosen by a hash of their id."""
    folds: int = Field(default=5, ge=2, le=20)
    """Parts by product: what is said of a creative comes from a head that has not seen its product."""
    components: int = Field(default=32, ge=1, le=256)
    """Dimensions that vectors are projected onto (PCA; for a reward of how pictures of one place differ), of each kind."""
    calibration: Literal["platt", "isotonic"] = "platt"
    """Scores to probabilities: a logistic curve, or steps that only rise, which take some thousand examples."""


class RewardTraining(HeadTraining):
    """How the learned score is trained."""

    max_weight: float = Field(default=10.0, ge=1)
    """Impressions count 1 / propensity, so that a variant shown seldom counts as one shown often; at most so much."""
    mark_weight: float = Field(default=10.0, ge=0)
    """As how many impressions an approval or rejection counts, all of them clicked or none; 0: marks are left out."""
    least_products: int = Field(default=10, ge=2)
    """With outcomes or marks of fewer products nothing is trained."""
    least_clicks: int = Field(default=100, ge=1)
    """With fewer clicks it is trained on marks alone, if there are any."""


class UsabilityTraining(HeadTraining):
    """How the usability gate is trained."""

    precision: float = Field(default=0.9, gt=0.5, le=1)
    """Share of the pictures it rejects that people would have rejected, on products and cohorts held out, from which it may be used."""
    least_rejected: int = Field(default=30, ge=5)
    """With fewer rejected or fewer other creatives nothing is trained."""
    examples: int = Field(default=500, ge=1, le=5000)
    """Rejected creatives that it keeps to say which of them a picture resembles."""
    sheets_uri: Uri = ""
    """Filled blind sheets: a .csv file or a folder of them; empty: marks alone. A creative that lost to the product's own
    picture counts as unusable, one that won as usable."""
    key_uri: Uri = ""
    """The key of the sheets, `<sheet>.key.json`."""
    sheet_weight: float = Field(default=0.5, gt=0, le=1)
    """Part of a mark as which a majority on the sheets counts."""


class Heads(Config):
    """Which heads are trained, and by what their pictures are embedded; in a night's file `generate`'s models are taken."""

    inherits: ClassVar = {"generate": {name: name for name in ("rank_model", "device", "threads")}}
    reward: RewardTraining = RewardTraining()
    """The learned score."""
    usability: UsabilityTraining = UsabilityTraining()
    """The usability gate."""
    rank_model: Uri = ""
    """The CLIP that ranks: a folder that open_clip saved."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where it runs; never chosen by what is there."""
    threads: int = Field(default=1, ge=1)
    """CPU threads an actor."""
    embed: Pool = Pool(batch=16)
    """Actors that embed stored creatives and texts; what is embedded is kept in tables/vectors."""


class Bin(BaseModel):
    """Creatives of like predictions: calibrated where both figures agree."""

    predicted: float
    observed: Interval
    n: float
    """impressions or verdicts"""


class Comparison(BaseModel):
    """The learned score against CLIP alone, on products held out, within places (cohorts, where most places have one variant).

    Creatives count by what is known of them: the more clicks, the less each tells."""

    creatives: int
    impressions: int
    clicks: int
    auc: float | None
    """among impressions of one place, how often a clicked one has the higher score; null where none compares"""
    clip_auc: float | None
    auc_gain: Interval | None
    log_loss: float
    """an impression so counted, in nats, where its place's rate is known and the score tells its variants apart"""
    clip_log_loss: float
    log_loss_gain: Interval
    """by how much the learned score's is lower"""


class Value(BaseModel):
    """Clicks an impression that showing the best variant of every place would bring, estimated from logged impressions."""

    method: Literal["snips", "doubly_robust"]
    by_score: Interval
    by_clip: Interval
    gain: Interval
    effective_impressions: float
    """impressions as many as the weights leave, by the learned score's choice (Kish)"""


class RewardFigures(BaseModel):
    """What a reward was trained on and how it does on products held out."""

    creatives: int
    products: int
    impressions: int
    clicks: int
    marks: int
    total: Comparison
    families: dict[str, Comparison]
    calibration: list[Bin]
    weights: dict[str, float]
    """log odds a standard deviation, of the figures that have names"""
    values: list[Value] = []
    """off-policy; empty where places or propensities are not known"""
    surely_better: bool
    """whether the 95 % interval of its gain over CLIP in order is above 0, and its log-loss below CLIP's"""


class UsabilityFigures(BaseModel):
    """What a usability head was trained on and how it does on products and cohorts held out."""

    creatives: int
    products: int
    rejected: int
    threshold: float | None = Field(gt=0, le=1)
    """probability from which a picture is rejected; null: it must not be used"""
    why: str
    """why there is no threshold; empty where there is one"""
    precision: Interval | None
    """of what is rejected by thresholds found on other products and cohorts, Wilson; null where none was rejected"""
    recall: Interval | None
    auc: float
    calibration: list[Bin]
    weights: dict[str, float]


class Trained(BaseModel):
    """A head below the root."""

    uri: str
    """what `generate.reward` or `generate.usability` is given"""
    revision: str
    new: bool
    """false: the same examples had trained it before, and nothing was written"""
    figures: RewardFigures | UsabilityFigures


class HeadsReport(BaseModel):
    """What was trained."""

    creatives: int = 0
    """that people have clicked or judged, and whose pictures are known"""
    unknown: int = 0
    """of them without a picture that can be read, or of which nothing is known any more"""
    reward: Trained | None = None
    usability: Trained | None = None
    notes: list[str] = []
