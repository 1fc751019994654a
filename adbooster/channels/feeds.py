"""What a channel's feed says: entries of products, or of asset groups, made from the rows of tables/deliveries alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import Field, model_validator

from adbooster.channels.presets import Channel, FeedKind, Form
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Config, Uri
from adbooster.contracts.text import clean

MAX_TAG = 100  # characters of a cohort's id that is a tag as it is
CATALOG = ("description", "link", "price", "availability", "condition", "brand")  # taken over from the shop's own feed
NEEDED: dict[FeedKind, tuple[str, ...]] = {
    "pinterest_catalog": ("description", "link", "price", "availability"),
    "tiktok_catalog": CATALOG,
}
"""Of these, what a channel takes no product without."""


class Feeds(Config):
    """What feeds hold beside pictures."""

    custom_label: int | None = Field(default=None, ge=0, le=4)
    """N of custom_label_N, which then holds the cohort of a product's best creative; it replaces the shop's own. Null: none."""
    additional_images: int = Field(default=0, ge=0, le=10)
    """Further scenes in Google's additional_image_link; they replace the shop's own pictures there. 0: none."""
    catalog_uri: Uri = ""
    """The shop's feed, of any form that `prepare.feed_uri` may have, whose description, link, price, availability, condition and brand
    Pinterest's and TikTok's feeds take over; products for which it lacks what the channel needs are left out. Empty: those
    columns are."""
    content_language: str = Field(default="", pattern=r"^([a-z]{2})?$")
    """Of the products in Merchant Center, two letters: en. The form merchant_api needs it."""
    feed_label: str = Field(default="", pattern=r"^[A-Z0-9_-]{0,20}$")
    """Of the products in Merchant Center, often a country: US. The form merchant_api needs it."""


class FeedSettings(Config):
    """All that decides a feed besides the tables."""

    channel: Channel
    """Whose feed it is."""
    public_base_url: str
    """What an object's path below the root follows."""
    feeds: Feeds
    """What it holds beside pictures."""

    @model_validator(mode="after")
    def _names_products(self) -> Self:
        if "merchant_api" in self.channel.files:
            for name in ("content_language", "feed_label"):
                if not getattr(self.feeds, name):
                    raise ValueError(
                        f"the channel {self.channel.name} has the form merchant_api, which needs feeds.{name}: it is part of "
                        "a product's name in Merchant Center"
                    )
        return self


@dataclass(frozen=True)
class Feed:
    """A channel's feed.

    settings  that it was made with
    key       the name of an entry's id
    columns   in order, of feeds whose values are texts; empty for others
    entries   by id; several addresses in one value are separated by commas
    left_out  entries and pictures that the channel would refuse, by reason
    """

    settings: FeedSettings
    key: str
    columns: tuple[str, ...]
    entries: dict[str, dict[str, Any]]
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def forms(self) -> tuple[Form, ...]:
        """Of its files."""
        return self.settings.channel.files


def build(settings: FeedSettings, rows: Iterable[dict], products: Mapping[str, dict[str, str]]) -> Feed:
    """The feed of a channel.

    rows      of schema.DELIVERIES, filled or a pair's original, of this channel, the best creatives of a product first; of
              originals only the manifest speaks
    products  title, brand and, where the shop's feed is given, its columns, by product_id
    """
    make = {
        "google_supplemental": _google_supplemental,
        "google_ads_assets": _google_ads_assets,
        "meta_catalog": _meta_catalog,
        "pinterest_catalog": _catalog,
        "tiktok_catalog": _catalog,
        "manifest": _manifest,
    }[settings.channel.feed]
    left_out: Counter[str] = Counter()
    usable = defaultdict(list)
    for row in rows:
        if row["uri"] is None and settings.channel.feed != "manifest":
            continue
        if word := _refused(settings.channel, row["product_id"], products.get(row["product_id"], {})):
            left_out[word] += 1
        else:
            usable[row["product_id"]].append(row)
    feed = make(settings, dict(sorted(usable.items())), products)
    return replace(feed, left_out=feed.left_out + left_out)


def _refused(channel: Channel, product_id: str | None, product: Mapping[str, str]) -> str | None:
    """Why the channel could not take a product; an id is never altered, as it names the product there."""
    if not product_id or clean(product_id) != product_id:
        return "unwritable_id"
    if len(product_id) > channel.limits.id:
        return "id_too_long"
    has_titles = channel.feed in ("meta_catalog", "pinterest_catalog", "tiktok_catalog")
    if has_titles and len(clean(product.get("title", ""))) > channel.limits.title:
        return "title_too_long"
    return None


def url(settings: FeedSettings, uri: str) -> str:
    return f"{settings.public_base_url}/{uri}"


def _limited(rows: list[dict], most: int, left_out: Counter[str]) -> list[dict]:
    """The first pictures that the channel takes, each file once."""
    first: dict[str, dict] = {}
    for row in rows:
        first.setdefault(row["uri"], row)
    left_out["too_many_images"] += max(0, len(first) - most)
    return list(first.values())[:most]


def _google_supplemental(settings: FeedSettings, usable: dict[str, list[dict]], products: Mapping[str, Any]) -> Feed:
    """id and what this feed overrides: fields that it does not have stay those of the shop's own feed."""
    more = min(settings.feeds.additional_images, settings.channel.limits.images)
    label = () if settings.feeds.custom_label is None else (f"custom_label_{settings.feeds.custom_label}",)
    columns = ("id", "lifestyle_image_link", *(("additional_image_link",) if more else ()), *label)
    entries, left_out = {}, Counter()
    for product_id, rows in usable.items():
        best, *others = _limited(rows, 1 + more, left_out if more else Counter())
        entry = {"id": product_id, "lifestyle_image_link": url(settings, best["uri"])}
        if more:
            entry["additional_image_link"] = ",".join(url(settings, row["uri"]) for row in others)
        entries[product_id] = entry | {name: _label(best["cohort_id"]) for name in label}
    return Feed(settings, "id", columns, entries, left_out)


def _label(cohort_id: str) -> str:
    """A cohort's id as a label or tag; one that cannot be is replaced by a digest."""
    plain = clean(cohort_id or "")
    fits = plain == cohort_id and 0 < len(plain) <= MAX_TAG and not set(plain) & set(",;|\"'<>")
    return plain if fits else f"cohort-{digest(cohort_id or '')[:12]}"


def _meta_catalog(settings: FeedSettings, usable: dict[str, list[dict]], products: Mapping[str, Any]) -> Feed:
    """Every picture of a product with the tags that an ad chooses it by: its cohort, and its shape."""
    entries, left_out, most, deepest = {}, Counter(), 0, 0
    for product_id, rows in usable.items():
        entry = {"id": product_id, "title": clean(products.get(product_id, {}).get("title", ""))}
        for i, (tags, uri) in enumerate(_tagged(settings.channel, rows, left_out)):
            entry[f"image[{i}].url"] = url(settings, uri)
            entry |= {f"image[{i}].tag[{j}]": tag for j, tag in enumerate(tags)}
            most, deepest = max(most, i + 1), max(deepest, len(tags))
        entries[product_id] = entry
    images = [(f"image[{i}].url", *(f"image[{i}].tag[{j}]" for j in range(deepest))) for i in range(most)]
    columns = ("id", "title", *(name for image in images for name in image))
    return Feed(settings, "id", columns, {k: {c: e.get(c, "") for c in columns} for k, e in entries.items()}, left_out)


def _tagged(channel: Channel, rows: list[dict], left_out: Counter[str]) -> list[tuple[list[str], str]]:
    kept = rows[: channel.limits.images]
    left_out["too_many_images"] += len(rows) - len(kept)
    return [([_label(row["cohort_id"]), *channel.slots[row["slot"]].tags], row["uri"]) for row in kept]


def _catalog(settings: FeedSettings, usable: dict[str, list[dict]], products: Mapping[str, Any]) -> Feed:
    """Pinterest and TikTok: the best scene is the picture, others are additional; the rest is the shop's own."""
    key = "sku_id" if settings.channel.feed == "tiktok_catalog" else "id"
    taken = CATALOG if settings.feeds.catalog_uri else ("brand",)
    label = "custom_label_0" if settings.channel.feed == "pinterest_catalog" else ""
    columns = (key, "title", *taken, "image_link", "additional_image_link", *((label,) if label else ()))
    entries, left_out = {}, Counter()
    for product_id, rows in usable.items():
        product = products.get(product_id, {})
        if settings.feeds.catalog_uri and (word := _unsold(settings.channel, product)):
            left_out[word] += 1
            continue
        best, *others = _limited(rows, settings.channel.limits.images, left_out)
        entry = {key: product_id, "title": clean(product.get("title", ""))}
        entry |= {name: clean(product.get(name, "")) for name in taken}
        entry["image_link"] = url(settings, best["uri"])
        entry["additional_image_link"] = ",".join(url(settings, row["uri"]) for row in others)
        entries[product_id] = entry | ({label: _label(best["cohort_id"])} if label else {})
    return Feed(settings, key, columns, entries, left_out)


def _unsold(channel: Channel, product: Mapping[str, str]) -> str | None:
    """Why the shop's feed says too little of a product for a channel."""
    if not any(product.get(name) for name in ("link", "price", "availability")):
        return "not_in_catalog"
    if any(not product.get(name) for name in NEEDED[channel.feed]):
        return "incomplete_in_catalog"
    if any("\ufffd" in product.get(name, "") for name in CATALOG):  # what a reader puts where it is not UTF-8
        return "unreadable_in_catalog"
    return "link_too_long" if len(product["link"]) > channel.limits.url else None


def _google_ads_assets(settings: FeedSettings, usable: dict[str, list[dict]], products: Mapping[str, Any]) -> Feed:
    """An asset group a cohort: its pictures by field type, the audience it is meant for, and what it says of them."""
    cohorts: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for rows in usable.values():
        for row in rows:
            cohorts[row["cohort_id"]][settings.channel.slots[row["slot"]].asset].append(row)
    number, entries, left_out = settings.feeds.custom_label, {}, Counter()
    for cohort_id, assets in sorted(cohorts.items()):
        best = {kind: sorted(rows, key=lambda r: -(r["score"] or 0)) for kind, rows in sorted(assets.items())}
        entries[cohort_id] = {
            "cohort_id": cohort_id,
            "asset_group": _label(cohort_id),
            "audience_signal": _label(cohort_id),
            "listing_group": None if number is None else {f"custom_label_{number}": _label(cohort_id)},
            "synthetic_content_info": {"advertiser_attestation": "IS_SYNTHETIC"},
            "assets": {
                kind: [_asset(settings, row) for row in _limited(rows, settings.channel.limits.images, left_out)]
                for kind, rows in best.items()
            },
        }
    return Feed(settings, "cohort_id", (), entries, left_out)


def _asset(settings: FeedSettings, row: dict) -> dict[str, Any]:
    names = ("sha256", "width_px", "height_px", "size_bytes", "product_id", "creative_id")
    ratio = "{:g}:{:g}".format(*settings.channel.slots[row["slot"]].ratio)
    return {"url": url(settings, row["uri"]), "ratio": ratio} | {name: row[name] for name in names}


def _manifest(settings: FeedSettings, usable: dict[str, list[dict]], products: Mapping[str, Any]) -> Feed:
    """A product's pictures by cohort and slot, and what outcomes of each are counted to: creative_id and, where it is not shown
    for certain, its propensity. A slot of a held-out pair has no picture: the shop shows its own and counts it as the control; where a
    pair has no creative it shows its own too, as the pair's original."""
    entries, left_out, most = {}, Counter(), settings.channel.limits.images
    for product_id, rows in usable.items():
        cohorts: dict[str, dict[str, Any]] = defaultdict(dict)
        pictures, originals = ([row for row in rows if bool(row["uri"]) == filled] for filled in (True, False))
        left_out["too_many_images"] += max(0, len(pictures) - most)
        for row in pictures[:most]:
            facts = {name: row[name] for name in ("width_px", "height_px", "creative_id")}
            chance = 1.0 if row["propensity"] is None else max(round(row["propensity"], 6), 1e-6)  # never 0
            facts |= {"propensity": chance} if chance < 1 else {}
            cohorts[row["cohort_id"]][row["slot"]] = {"url": url(settings, row["uri"])} | facts
        for row in originals:
            what = "control" if row["reason"] == "holdout" else "original"
            cohorts[row["cohort_id"]][row["slot"]] = {"creative_id": row["creative_id"], what: True}
        entries[product_id] = {"id": product_id, "cohorts": dict(cohorts)}
    return Feed(settings, "id", (), entries, left_out)
