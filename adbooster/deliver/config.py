"""Settings and report of `jobs.deliver`."""

import re
from datetime import date
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, model_validator

from adbooster.channels.feeds import Feeds
from adbooster.contracts.recipe import Adapter, Recipe
from adbooster.contracts.settings import Config, JobConfig, Pool, Uri
from adbooster.experiments.config import Holdout
from adbooster.models.settings import MaskNetwork
from adbooster.painting.config import PaintingConfig, Targeting
from adbooster.provenance.signing import Signing

_PAIRS = ("holdout", "targeting", "rank_model", "brand_rules_uri", "brand_rules_day")
_LIKE_GENERATE = (
    *("weights", "adapters", "rank_model", "mask_model", "mask_network", "safety_model", "preview_model"),
    *("device", "dtype", "compiled", "threads", "place", "paint", "finish", "paint_batch", "recipe"),
)


def _public(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
        raise ValueError("should be an https address without user and password: https://cdn.shop.example/ads")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("has a query or fragment; channels stop fetching addresses that change: leave it out")
    if not re.fullmatch(r"[A-Za-z0-9:/._~%-]+", url) or any(part in (".", "..") for part in parts.path.split("/")):
        raise ValueError("should be ASCII letters, digits and . _ ~ - / only: no comma, no space")
    return url.rstrip("/")


PublicUrl = Annotated[str, AfterValidator(_public)]


class Encoding(Config):
    """How renditions are encoded."""

    quality: int = Field(default=92, ge=1, le=100)
    """Quality of JPEG and WebP where the file is small enough with it; JPEG keeps full colour resolution."""
    min_quality: int = Field(default=75, ge=1, le=100)
    """Lowest quality that a byte limit may press a file to; what is still too large is no rendition (`over_budget`)."""
    max_kb: float | None = Field(default=None, gt=0)
    """A limit of the shop's own, in kilobytes (1000 bytes), beside each slot's; null: none."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min_quality > self.quality:
            raise ValueError(f"min_quality {self.min_quality} is more than quality {self.quality}")
        return self


class Fidelities(Config):
    """What encoding may do to the product's pixels; a lossy file beyond it is no rendition (`product_altered`)."""

    min_psnr_db: float = Field(default=36, ge=0, le=99)
    """Peak signal-to-noise ratio of the product, before encoding and in the file."""
    max_delta_e_mean: float = Field(default=1.5, ge=0)
    """Mean colour difference (CIEDE2000) of the product's pixels; about 1 is just visible."""
    max_delta_e_p99: float = Field(default=5, ge=0)
    """99th percentile of it."""


class Provenance(Config):
    """What files say of themselves, besides their channel's `digital_source_type`."""

    ai_system: str = Field(default="AdBooster", max_length=200)
    """What painted the scene (IPTC AISystemUsed); its version is the revision of the weights. Empty: neither is written."""
    prompt: bool = False
    """The prompt is written into the file (IPTC AIPromptInformation): whoever has the file can read it."""
    prompt_writer: str = Field(default="", max_length=200)
    """Who wrote the prompt (IPTC AIPromptWriterName); it is written with the prompt only."""


class Extension(Config):
    """How creatives are extended where no crop fills a slot; `extend: {}` takes all of it from the file's section generate."""

    inherits: ClassVar = {"generate": {name: name for name in _LIKE_GENERATE}}
    weights: Uri
    """The outpainter that the creatives were painted with: a folder in diffusers layout. Where the live creatives were painted
    with others that lie below the root, those are used."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on the weights, in this order."""
    rank_model: Uri
    """The CLIP that generate ranks with, for the gates."""
    mask_model: Uri = ""
    """Salient-object network (.onnx) for the gates."""
    mask_network: MaskNetwork = MaskNetwork()
    """How it is fed and read."""
    safety_model: Uri = ""
    """Folder of a StableDiffusionSafetyChecker."""
    preview_model: Uri = ""
    """As in generate; it is part of the recipe's name."""
    device: str = Field(default="cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    dtype: str = Field(default="float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    compiled: bool = False
    """torch.compile the network's repeated blocks."""
    threads: int = Field(default=1, ge=1)
    """CPU threads a painting actor."""
    place: Pool = Pool()
    """Actors that show the models what is there."""
    paint: Pool = Pool(batch=8)
    """Actors that paint and look at the seam."""
    finish: Pool = Pool(batch=4, niceness=5)
    """Actors that join, prove and store."""
    paint_batch: int = Field(default=16, ge=1)
    """Paintings in one pass of the network."""
    recipe: Recipe = Recipe()
    """The recipe of the creatives; those of another recipe are not extended."""
    edge_px: int = Field(default=0, ge=0, le=64)
    """Strip along the creative's edge that is painted anew, never any of the product; 0: every pixel of the creative stays. Some
    VAEs draw a fringe of a few pixels along the edges of what they paint, which otherwise shows as a line."""
    attempts: int = Field(default=3, ge=1, le=20)
    """Times an extension is painted, with new seeds, while its seam shows or a gate rejects it."""
    max_seam: float | None = Field(default=2.0, ge=1)
    """Step across the creative's edge over the steps of the scene beside it, above which the seam shows (`visible_seam`);
    null: every seam is taken."""

    def painting(self, root_uri: str, run_id: str) -> PaintingConfig:
        """The settings of whatever paints."""
        same = {name: getattr(self, name) for name in PaintingConfig.model_fields if name in type(self).model_fields}
        return PaintingConfig(root_uri=root_uri, run_id=run_id, **same)


class Variants(Config):
    """Which of several live variants of a product, cohort and placement is shown; a single one always is."""

    redraw_days: int = Field(default=1, ge=1, le=366)
    """Days that a draw holds, with the probability that it had on the first of them."""
    seed: int = 0
    """Another seed, other draws."""
    day: date | None = None
    """The day (2026-12-27) that is drawn for; null: today."""


class DeliverConfig(JobConfig):
    """Settings of `jobs.deliver`; which pairs are held out is as in the file's section generate."""

    inherits: ClassVar = {"generate": {name: name for name in _PAIRS}}
    channels: tuple[str, ...] = Field(min_length=1)
    """Presets (google_pmax, google_merchant, meta, pinterest, tiktok, web) or paths of files of that form."""
    public_base_url: PublicUrl
    """Where the root is readable for channels: https://cdn.shop.example/ads; an object's path below the root follows it."""
    require: Literal["approved", "not_rejected", "any"] = "not_rejected"
    """Creatives that are delivered: those a person approved, those nobody rejected, or all that are live."""
    variants: Variants = Variants()
    """How one of several live variants is drawn."""
    holdout: Holdout = Holdout()
    """Pairs that keep the original picture: nothing painted is delivered for them, and each slot of them says so."""
    targeting: Targeting = Targeting()
    """Which pairs there are to be held out of."""
    rank_model: Uri = ""
    """The CLIP of the targeting rule top_n, where pairs are held out."""
    brand_rules_uri: Uri = ""
    """Pairs that these rules forbid are not held out: they would not be painted either."""
    brand_rules_day: date | None = None
    """The day that rules with dates are compared with; null: that of `variants`."""
    encoding: Encoding = Encoding()
    """How renditions are encoded."""
    fidelity: Fidelities = Fidelities()
    """What encoding may do to the product."""
    provenance: Provenance = Provenance()
    """What files say of themselves."""
    signing: Signing | None = None
    """How files are signed (C2PA); null: they are not."""
    feeds: Feeds = Feeds()
    """What feeds hold beside pictures."""
    extend: Extension | None = None
    """Paint more scene round a creative where no crop of it fills a slot; null: such slots stay empty, or show a creative that was
    painted for another placement."""
    render: Pool = Pool(batch=16)
    """Actors that crop, encode and read back."""
    max_failed_share: float = Field(default=0.1, ge=0, le=1)
    """With a larger share of renditions that failed (unreadable, crashed, altered), nothing is published."""
    max_removed_share: float = Field(default=0.5, ge=0, le=1)
    """Where more of a channel's last feed, and more than 10 entries, would leave it, nothing is published; withdrawals are not
    counted. 1 allows it."""
    progress_s: float = Field(default=30, gt=0)
    """Seconds between two lines of progress in the log."""

    @property
    def needs_ray(self) -> bool:
        """The job starts Ray itself once there is a file to make: an unchanged catalog needs none."""
        return False


class FeedReport(BaseModel):
    """A channel's feed; counts are entries: products, or asset groups in Google Ads."""

    uri: str | None = None
    """Where channels fetch it; null in a dry run"""
    pointer_uri: str | None = None
    """Names the feed's unchanging file, the delta and the feed before"""
    entries: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    left_out: dict[str, int] = {}
    """Entries and pictures that the channel would refuse, by reason"""


class ChannelReport(BaseModel):
    """What one channel is given; counts are slots of products and cohorts."""

    wanted: int = 0
    filled: int = 0
    empty: dict[str, int] = {}
    """by reason"""
    feed: FeedReport = FeedReport()


class DeliverReport(BaseModel):
    """What `jobs.deliver` did."""

    job: str = "deliver"
    run_id: str
    dry_run: bool = False
    creatives_version: int | None
    creatives: int
    """Live creatives: the best of each place, and all variants of places that have an allocation."""
    delivered: int = 0
    """Of them in at least one slot."""
    left_out: dict[str, int] = {}
    """Of them not delivered at all, by reason: original, holdout, rejected, not_approved, withdrawn, retired (its product left the feed), replaced
    (outcomes retired it), not_drawn."""
    held_out: int = 0
    """Pairs of product and cohort that keep the original picture."""
    first_shown: int = 0
    """Creatives and originals of pairs that are delivered for the first time; tables/shown has them now."""
    channels: dict[str, ChannelReport] = {}
    made_by: dict[str, int] = {}
    """Filled slots by how: crop, extension, or placement (a crop of a creative that was painted for another placement)."""
    to_extend: int = 0
    """Extensions that were not there yet."""
    extended: int = 0
    """Of them painted, joined and stored."""
    not_extended: dict[str, int] = {}
    """Of them not, by reject word: visible_seam, what gates reject, what failed."""
    seam: float | None = None
    """Mean over the extensions that are delivered: the step across the creative's edge over the scene's own; 1: not seen."""
    to_render: int = 0
    """Files that were not there yet."""
    rendered: int = 0
    """Of them made."""
    failures: dict[str, int] = {}
    """Of them not made, by reject word."""
    changed: int = 0
    """Rows of tables/deliveries that are new or different."""
    removed: int = 0
    """Rows of tables/deliveries that are gone."""
    size_bytes: int = 0
    """Of all files that are delivered, each counted once."""
    deliveries_version: int | None = None
    not_renewed: list[str] = []
    """Channels that have a feed and are not in `channels`: their feeds name what they named before."""
    gallery_uri: str | None = None
    """The run's page (report.html) with every slot; null in a dry run, and where a run alone changed nothing."""
    seconds: float = 0.0
