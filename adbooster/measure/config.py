"""Settings of measuring pictures, and of trials: weights and prompts painted on a fixed panel to be compared."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, TypedDict

from pydantic import Field

from adbooster.contracts.naming import digest
from adbooster.contracts.recipe import Adapter, Recipe
from adbooster.contracts.settings import Config, JobConfig, Pool, Uri
from adbooster.models.settings import MaskNetwork
from adbooster.prompts.config import Prompting
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import content_hash, local_copy


class MeasureConfig(JobConfig):
    """The models that measure creatives."""

    rank_model: Uri
    """The CLIP that ranked: a folder that open_clip saved."""
    judge_model: Uri
    """The CLIP that judges; it must not be the one that ranked, which is no independent judge of its own choice."""
    mask_model: Uri = ""
    """Salient-object network (.onnx) that detects grown products and second copies; empty: neither is measured."""
    mask_network: MaskNetwork = MaskNetwork()
    """How it is fed and read."""
    inception_model: Uri = ""
    """ONNX network, float pictures [N,3,299,299] of -1 to 1 in, features [N,D] out: the Inception of FID and KID;
    empty: both are computed on the judge's features and named so."""
    zero_shot: bool = True
    """Detect people and writing by zero-shot CLIP (the judge); off for a CLIP that was trained on neither."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    threads: int = Field(default=1, ge=1)
    """CPU threads an actor."""


def revision(config: MeasureConfig) -> str:
    """16 hex digits of all that decides a measurement: those of other models have other names."""
    rank, judge, inception = (
        content_hash(local_copy(u)) if u else ""
        for u in (config.rank_model, config.judge_model, config.inception_model)
    )
    masks = mask_model(config.mask_model, config.mask_network).revision if config.mask_model else ""
    return digest(rank, judge, masks, inception, str(config.zero_shot))[:16]


LIKE_GENERATE = (
    *("rank_model", "mask_model", "mask_network", "device", "dtype", "compiled", "threads", "paint", "paint_batch"),
    "recipe",
)


class OwnPictures(TypedDict):
    """A product's pictures in the catalog, relative to the root; the main one has a mask."""

    photo_uri: str
    mask_uri: str
    neutral_uris: list[str]
    """on a plain ground"""
    contextual_uris: list[str]
    """in a scene"""


class CohortText(TypedDict):
    """A cohort's family, and its text (Q and C) as scored against."""

    family: str
    text: str


class Trial(Config):
    """One way to make creatives."""

    name: str = Field(min_length=1, max_length=100)
    """What tables and pages call it: `fine-tuned, qc`."""
    weights: Uri
    """The outpainter: a folder in diffusers layout."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on the weights."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text: `style: qc` or `style: llm`."""


class ComparisonPanel(Config):
    """The products and cohorts of a comparison: always the same while they are in the tables."""

    products: int = Field(default=12, ge=1)
    """Products, chosen by a hash of their id; those with a picture in a scene first."""
    product_ids: tuple[str, ...] = ()
    """These products instead."""
    cohorts: int = Field(default=0, ge=0)
    """Cohorts, chosen by a hash of their id; 0: all."""
    cohort_ids: tuple[str, ...] = ()
    """These cohorts instead."""

    def pairs(self, products: Mapping[str, OwnPictures], cohorts: Iterable[str]) -> list[tuple[str, str]]:
        """(product_id, cohort_id) of the panel, of the products and cohorts given."""
        cohort_ids = set(cohorts)
        scenic = {name for name, product in products.items() if product["contextual_uris"]}
        order = sorted(products, key=lambda p: (p not in scenic, digest("panel", p)))
        chosen = [p for p in self.product_ids if p in products] or order[: self.products]
        by_hash = sorted(cohort_ids, key=lambda c: digest("panel", c))
        texts = [c for c in self.cohort_ids if c in cohort_ids] or by_hash[: self.cohorts or None]
        return [(p, c) for p in sorted(chosen) for c in sorted(texts)]


class TrialsConfig(MeasureConfig):
    """How trials are painted; the same for all that are compared. In a night's file they come from `generate`."""

    inherits: ClassVar = {"generate": {name: name for name in LIKE_GENERATE}}
    dtype: str = Field(default="float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    compiled: bool = False
    """torch.compile the UNet."""
    paint: Pool = Pool(batch=8)
    """Actors that paint, score and measure."""
    paint_batch: int = Field(default=16, ge=1)
    """Paintings in one pass of the network."""
    recipe: Recipe = Recipe()
    """What decides the pixels. Trials publish nothing: gates, rounds and `keep` are ignored, and what the gates
    check is measured instead."""
    panel: ComparisonPanel = ComparisonPanel()
    """The products and cohorts that are painted."""
