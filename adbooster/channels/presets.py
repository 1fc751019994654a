"""Channels: which sizes they show, what a file may be there, and what their feed looks like. Presets are YAML files."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Range
from adbooster.contracts.settings import Config
from adbooster.contracts.text import first_error
from adbooster.contracts.yaml_text import parse_yaml

PRESETS = Path(__file__).parents[1] / "presets" / "channels"
MAX_BYTES = 1 << 20  # of a channel's file
RATIO_TOLERANCE = 0.01  # share by which width over height may differ; Google Ads allows as much
MAX_SIDE_PX = 16383  # of a WebP
FileFormat = Literal["jpeg", "png", "webp"]
FeedKind = Literal[
    "google_supplemental", "google_ads_assets", "meta_catalog", "pinterest_catalog", "tiktok_catalog", "manifest"
]
Form = Literal["tsv", "csv", "json", "xml", "merchant_api"]
FORMS: dict[FeedKind, tuple[Form, ...]] = {
    "google_supplemental": ("tsv", "xml", "merchant_api"),
    "google_ads_assets": ("json",),
    "meta_catalog": ("csv",),
    "pinterest_catalog": ("tsv",),
    "tiktok_catalog": ("tsv",),
    "manifest": ("json",),
}
"""Forms that a feed's file can have, the usual one first."""
SourceType = Literal[
    "trainedAlgorithmicMedia",
    "compositeWithTrainedAlgorithmicMedia",
    "compositeSynthetic",
    "algorithmicMedia",
    "algorithmicallyEnhanced",
]
"""Codes of IPTC's vocabulary of digital source types that fit a painted scene round a photographed product."""


def _positive(size: tuple[float, float]) -> tuple[float, float]:
    if not all(math.isfinite(n) and 0 < n <= MAX_SIDE_PX for n in size):
        raise ValueError(f"should be two numbers above 0, width first, up to {MAX_SIDE_PX}")
    return size


def _scale(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.01 <= value[0] <= value[1] <= 10:
        raise ValueError("should be two numbers of 0.01 to 10, the lower first")
    return value


Size = Annotated[tuple[int, int], AfterValidator(_positive)]
Ratio = Annotated[tuple[float, float], AfterValidator(_positive)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Margins(Config):
    """Strips along the edges of a slot that the product stays out of, as shares of its width and height."""

    left: Share = 0.02
    """Of the width."""
    top: Share = 0.02
    """Of the height."""
    right: Share = 0.02
    """Of the width."""
    bottom: Share = 0.04
    """Of the height; what the product stands on is seen there."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.left + self.right >= 1 or self.top + self.bottom >= 1:
            raise ValueError("the margins leave no room for the product")
        return self


class ProductPlace(Config):
    """Where in a slot the product lies, as shares of the slot."""

    centre_x: Range = (0.0, 1.0)
    """Where its middle may be from the left edge (0) to the right (1)."""
    centre_y: Range = (0.0, 1.0)
    """Where its middle may be from the upper edge (0) to the lower (1)."""
    scale: Annotated[tuple[float, float], AfterValidator(_scale)] = (0.15, 2.0)
    """Its longer side over the slot's shorter side; above 1 for a long product in a long slot."""


class Slot(Config):
    """One size that a channel shows."""

    ratio: Ratio
    """Width and height as the channel names them: [1.91, 1], [4, 5]."""
    min_px: Size
    """Smallest width and height that the channel takes."""
    wanted_px: Size
    """Width and height that a rendition is scaled down to where the creative has more; never up."""
    formats: tuple[FileFormat, ...] = Field(min_length=1)
    """What a file may be; the first that fits is used."""
    max_bytes: int = Field(ge=1000)
    """Largest file."""
    safe_area: Margins = Margins()
    """Margins that the product stays out of; wider ones where controls lie over the picture."""
    product: ProductPlace = ProductPlace()
    """Where the product lies."""
    tags: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,100}$")], ...] = ()
    """Tags beside the cohort's that a picture has in Meta's feed."""
    asset: str = Field(default="", pattern=r"^[A-Z_]{0,64}$")
    """Field type of the asset in Google Ads."""

    def check_fillable(self, name: str) -> None:
        """raises  ConfigError if a product as small and as narrow as it may be has no place; settings that are stored may"""
        longer = self.product.scale[0] * min(self.wanted_px)
        wide, high = longer / self.wanted_px[0], longer / self.wanted_px[1]
        if not (self._has_place(wide, 0) or self._has_place(0, high)):
            raise ConfigError(
                f"slots.{name}: no product has a place: at product.scale {self.product.scale[0]:g} or more and with its middle at centre_x "
                f"{list(self.product.centre_x)}, centre_y {list(self.product.centre_y)} it reaches into the safe area's margins"
            )

    def _has_place(self, wide: float, high: float) -> bool:
        """Whether a product of so large a share of the width and of the height can lie off the margins."""
        safe, place = self.safe_area, self.product
        axes = ((place.centre_x, safe.left, safe.right, wide), (place.centre_y, safe.top, safe.bottom, high))
        return all(
            max(centre[0], before + n / 2) <= min(centre[1], 1 - after - n / 2) + 1e-9
            for centre, before, after, n in axes
        )

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if any(least > most for least, most in zip(self.min_px, self.wanted_px, strict=True)):
            raise ValueError(f"wanted_px {self.wanted_px} is less than min_px {self.min_px}")
        for name in ("min_px", "wanted_px"):
            wide, high = getattr(self, name)
            if abs(wide / high / (self.ratio[0] / self.ratio[1]) - 1) > RATIO_TOLERANCE:
                raise ValueError(f"{name} {wide} x {high} is not of the ratio {self.ratio[0]:g} : {self.ratio[1]:g}")
        return self


class Limits(Config):
    """What a channel's feed may hold."""

    id: int = Field(ge=1)
    """Characters of a product's id."""
    title: int = Field(default=150, ge=1)
    """Characters of a title."""
    url: int = Field(ge=50)
    """Characters of an address."""
    images: int = Field(ge=1)
    """Pictures of one product: in Google's supplemental feed, additional ones; in Google Ads, of one asset group and type."""


class Channel(Config):
    """Where ads are shown."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    """Its folder below delivery/."""
    feed: FeedKind
    """What its feed holds."""
    forms: tuple[Form, ...] = ()
    """Files that its feed is written as, all of the same entries: for google_supplemental tsv, xml (RSS 2.0) and merchant_api
    (JSON lines of product inputs). Empty: the usual one."""
    digital_source_type: SourceType = "compositeWithTrainedAlgorithmicMedia"
    """What its files say of themselves, by IPTC's vocabulary."""
    limits: Limits
    """What its feed may hold."""
    slots: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")], Slot] = Field(min_length=1)
    """The sizes it shows."""

    @model_validator(mode="after")
    def _fits_its_feed(self) -> Self:
        if wrong := [form for form in self.forms if form not in FORMS[self.feed]]:
            raise ValueError(f"{self.feed} is not written as {wrong[0]}, only as {', '.join(FORMS[self.feed])}")
        if len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms names one twice: {', '.join(self.forms)}")
        for name, slot in self.slots.items():
            if slot.tags and self.feed != "meta_catalog":
                raise ValueError(f"slot {name} has tags, which only the feed meta_catalog knows")
            if bool(slot.asset) != (self.feed == "google_ads_assets"):
                raise ValueError(f"slot {name}: `asset` belongs to the feed google_ads_assets, and is needed there")
            for kind in self.refused & set(slot.formats):
                raise ValueError(f"slot {name} allows {kind}, which {self.feed} does not take")
        return self

    @property
    def files(self) -> tuple[Form, ...]:
        """The forms of its feed's files."""
        return self.forms or FORMS[self.feed][:1]

    @property
    def refused(self) -> set[FileFormat]:
        """What no picture in its feed may be."""
        return {"webp"} if self.feed in ("google_ads_assets", "meta_catalog", "tiktok_catalog") else set()


def load_channels(names: Iterable[str]) -> tuple[Channel, ...]:
    """Channels by the name of a preset or the path of a YAML file.

    raises  ConfigError for one that cannot be used, and for two of the same name, which would share a folder
    """
    channels: dict[str, Channel] = {}
    for name in names:
        channel = _channel(name)
        if channel.name in channels:
            raise ConfigError(
                f"two channels are called {channel.name!r} and would write the same folder delivery/{channel.name}"
            )
        channels[channel.name] = channel
    return tuple(channels.values())


def _channel(name: str) -> Channel:
    presets = {p.stem: p for p in sorted(PRESETS.glob("*.yaml"))}
    path = presets.get(name) or Path(name)
    if not path.is_file():
        raise ConfigError(f"there is no channel {name!r}; give the path of a file, or one of {', '.join(presets)}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ConfigError(f"{path} has {size} bytes, a channel's file at most {MAX_BYTES}")
    content = parse_yaml(path.read_bytes(), str(path))
    try:
        channel = Channel.model_validate(content)
    except ValidationError as e:
        raise ConfigError(f"the channel {path} cannot be used: {first_error(e, most=60)}") from e
    for slot_name, slot in channel.slots.items():
        slot.check_fillable(slot_name)
    return channel
