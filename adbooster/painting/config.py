"""Settings of whatever paints: models, device, batches, recipe; and which cohorts a product is painted for, or never."""

import math
from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

from adbooster.contracts.recipe import Adapter, Recipe
from adbooster.contracts.settings import Config, JobConfig, Pool, Uri
from adbooster.models.settings import MaskNetwork


class PaintingConfig(JobConfig):
    """What a painting actor needs; GenerateConfig adds what a night needs."""

    weights: Uri
    """The outpainter: a folder in diffusers layout, local or s3://."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on the weights, in this order."""
    rank_model: Uri
    """The CLIP that scores and ranks: a folder that open_clip saved."""
    mask_model: Uri = ""
    """Salient-object network (.onnx) for the gates on the product's shape."""
    mask_network: MaskNetwork = MaskNetwork()
    """How it is fed and read."""
    safety_model: Uri = ""
    """Folder of a StableDiffusionSafetyChecker; empty: pictures are not checked for unsafe content."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    dtype: str = Field(default="float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    preview_model: Uri = ""
    """Folder of a small decoder (AutoencoderTiny, as TAESD) for the previews of `recipe.halving`; empty: as that says."""
    compiled: bool = False
    """torch.compile the network's repeated blocks: some time at the start of every actor, faster steps after."""
    threads: int = Field(default=1, ge=1)
    """CPU threads a painting actor."""
    paint: Pool = Pool(batch=8)
    """Actors that paint and score; `batch` counts requests, rounded up so that paintings fill whole passes."""
    place: Pool = Pool()
    """Actors that cut products out and place them, for the painters; they take batches as the painters do."""
    finish: Pool = Pool(batch=4, niceness=5)
    """Actors that finish, prove and store what the painters chose."""
    paint_batch: int = Field(default=16, ge=1)
    """Paintings in one pass of the network; always filled, so that a picture does not depend on its neighbours."""
    recipe: Recipe = Recipe()
    """What decides the pixels."""
    score: Literal["clip", "blend"] = "clip"
    """What candidates are chosen by: the CLIP score, or it and a learned score together. A candidate has to beat the
    product's own pictures by CLIP either way."""
    reward: Uri = ""
    """Folder of the learned score (`rewards/<revision>` below the root), for `score: blend`."""
    reward_weight: float = Field(default=0.5, gt=0, le=1)
    """Its weight: 1 is the learned score alone; at 0.5 a standard deviation of either counts the same."""
    usability: Uri = ""
    """Folder of a usability gate that people's verdicts have trained; empty: it is not asked."""

    @property
    def looks_at_finished(self) -> bool:
        """Whether a gate looks at candidates as they would be published."""
        gates = self.recipe.gates
        asked = gates.max_expansion_share, gates.max_copy_similarity, gates.max_people, gates.max_text
        return bool(self.safety_model) or any(most is not None for most in asked)

    @property
    def requests_a_pass(self) -> int:
        """Requests whose candidates, also those that are left after halving, fill whole passes of the network."""
        k, halving = self.recipe.candidates, self.recipe.halving
        left = math.ceil(k * halving.keep) if halving.at else k
        return math.lcm(*(self.paint_batch // math.gcd(self.paint_batch, n) for n in (k, left)))


class Targeting(Config):
    """Which cohorts a product is painted for."""

    rule: Literal["all", "top_n", "table"] = "all"
    """all: every cohort; top_n: the n whose query is nearest to the product's words, by the rank model's text tower;
    table: the pairs that a table lists."""
    n: int = Field(default=5, ge=1)
    """Cohorts a product under top_n."""
    table_uri: Uri = ""
    """Parquet or CSV with the columns product_id and cohort_id, for the rule table."""


class Pair(BaseModel):
    """A product and a cohort."""

    product_id: str
    cohort_id: str


class RuleFigures(BaseModel):
    """What one rule forbids."""

    name: str
    reject: str
    pairs: int
    sample: list[Pair]
    """some of them, spread evenly"""


class BrandFigures(BaseModel):
    """What brand rules forbid; counts are pairs of product and cohort that the targeting wants, unless stated otherwise."""

    day: date | None = None
    """what rules with dates were compared with"""
    sha256: str | None = None
    """of the file"""
    pairs: int = 0
    """forbidden by any rule"""
    rejects: dict[str, int] = {}
    """forbidden, by word; a pair that rules of several words forbid counts for each word"""
    rules: list[RuleFigures] = []
    live: int = 0
    """live creatives of forbidden pairs; they leave with this night's commit"""
    notes: list[str] = []
    """rules that match nothing"""
