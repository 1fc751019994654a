"""Feeds made from rows as tables/deliveries has them: every picture another file, as its slot wants it."""

import hashlib

from adbooster.channels.feeds import Feed, Feeds, FeedSettings, build
from adbooster.channels.presets import Channel, load_channels

BASE = "https://cdn.shop.example/ads"
NAMES = ("google_pmax", "google_merchant", "meta", "pinterest", "tiktok", "web")
HOSTILE = (
    '=HYPERLINK("x")',
    "a,b;c|d",
    "<script>&amp;]]>",
    "../../etc",
    "ü/~%",
    'say "hi"',
    "'quoted'",
    "שלום עולם",
    "🎃 x 10",
    " leading",
    "tab\tbed",
    "",
)
UNWRITABLE = {" leading", "tab\tbed", ""}
FACTS = {"description": "d", "link": "https://s/1", "price": "9 EUR", "availability": "in stock", "condition": "new"}


def rows(channel: Channel, products=("P1",), cohorts=("c1",), **changes) -> list[dict]:
    """Filled rows of a channel, as Sources hands them on."""
    found = []
    for product in products:
        for i, cohort in enumerate(cohorts):
            for name, slot in channel.slots.items():
                sha = hashlib.sha256(f"{product} {cohort} {name}".encode()).hexdigest()
                kind = slot.formats[0]
                uri = f"objects/{sha[:2]}/{sha}.{'jpg' if kind == 'jpeg' else kind}"
                facts = {
                    "creative_id": sha[:16],
                    "propensity": None,
                    "sha256": sha,
                    "uri": uri,
                    "format": kind,
                    "size_bytes": 9000,
                }
                facts |= {"width_px": slot.wanted_px[0], "height_px": slot.wanted_px[1], "score": 1 - i / 10}
                place = {"product_id": product, "cohort_id": cohort, "slot": name, "channel": channel.name}
                found.append(place | facts | changes)
    return found


def made(name: str, products=("P1",), cohorts=("c1",), facts=None, forms=(), limits=None, **feeds) -> Feed:
    channel = load_channels([name])[0]
    channel = channel.model_copy(update={"forms": forms, "limits": channel.limits.model_copy(update=limits or {})})
    settings = FeedSettings(channel=channel, public_base_url=BASE, feeds=Feeds(**feeds))
    facts = facts or {p: {"title": f"The {p}", "brand": "B"} for p in products}
    return build(settings, rows(channel, products, cohorts), facts)
