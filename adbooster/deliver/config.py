"""Settings and report of `jobs.deliver`."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, Field, model_validator

from adbooster.channels.feeds import Feeds
from adbooster.contracts.settings import Config, JobConfig, Pool


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


class DeliverConfig(JobConfig):
    """Settings of `jobs.deliver`."""

    channels: tuple[str, ...] = Field(min_length=1)
    """Presets (google_pmax, google_merchant, meta, pinterest, tiktok, web) or paths of files of that form."""
    public_base_url: PublicUrl
    """Where the root is readable for channels: https://cdn.shop.example/ads; an object's path below the root follows it."""
    require: Literal["approved", "not_rejected", "any"] = "not_rejected"
    """Creatives that are delivered: those a person approved, those nobody rejected, or all that are live."""
    encoding: Encoding = Encoding()
    """How renditions are encoded."""
    fidelity: Fidelities = Fidelities()
    """What encoding may do to the product."""
    provenance: Provenance = Provenance()
    """What files say of themselves."""
    feeds: Feeds = Feeds()
    """What feeds hold beside pictures."""
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
    """Live creatives of rank 0."""
    delivered: int = 0
    """Of them in at least one slot."""
    left_out: dict[str, int] = {}
    """Of them not delivered at all, by reason: original, rejected, not_approved, withdrawn, retired."""
    channels: dict[str, ChannelReport] = {}
    made_by: dict[str, int] = {}
    """Filled slots by how: crop."""
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
    """The run's page (report.html) with every slot; null in a dry run."""
    seconds: float = 0.0
