"""A feed against its channel's rules, entry by entry and picture by picture, before anything of it is written.

What may come with the data (long ids, missing prices, too many scenes) is left out when the feed is built. What is found
here is an error of this package or a channel's file that asks for more than the platform takes, and stops the feed.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from adbooster.channels.feeds import MAX_TAG, Feed, url
from adbooster.channels.presets import RATIO_TOLERANCE, Channel, FileFormat, Slot
from adbooster.contracts.errors import AdboosterError
from adbooster.contracts.text import clean, shown

MOST_ADDITIONAL = 10  # addresses in additional_image_link
EXTENSIONS: dict[FileFormat, tuple[str, ...]] = {"jpeg": (".jpg", ".jpeg"), "png": (".png",), "webp": (".webp",)}
_ADDRESSES = re.compile(r"(lifestyle_|additional_)?image_link|image\[\d+\]\.url|url")
_LABELS = re.compile(r"custom_label_\d|image\[\d+\]\.tag\[\d+\]|asset_group|audience_signal")


class Fault(NamedTuple):
    """A value that the channel would refuse, and the rule that it breaks."""

    field: str
    value: Any
    rule: str


def check(feed: Feed, rows: Iterable[dict]) -> None:
    """Every entry, and the pictures behind its addresses.

    rows    of schema.DELIVERIES, filled, of this channel: what is known of the pictures
    raises  AdboosterError with the entry, the field, its value and the rule that it breaks
    """
    channel, pictures = feed.settings.channel, defaultdict(list)
    for row in rows:
        pictures[url(feed.settings, row["uri"])].append(row)
    ids = Counter(entry.get(feed.key) for entry in feed.entries.values())
    for key, entry in feed.entries.items():
        for fault in _faults(feed, entry, ids, pictures):
            raise AdboosterError(
                f"the feed of {channel.name} would be refused: entry {shown(key)}, {fault.field} {shown(fault.value, 200)}: "
                f"{fault.rule}; nothing was published"
            )


def _faults(feed: Feed, entry: dict[str, Any], ids: Counter, pictures: dict[str, list[dict]]) -> Iterator[Fault]:
    channel, own = feed.settings.channel, entry.get(feed.key)
    if not own and feed.key != "cohort_id":
        yield Fault(feed.key, own, "should be there")
    if ids[own] > 1:
        yield Fault(feed.key, own, f"is the id of {ids[own]} entries")
    numbers: Counter[str] = Counter()
    for field, place, value in _values(entry):
        if _ADDRESSES.fullmatch(field):
            for address in value.split(",") if value else ():
                numbers[place] += 1
                yield from (Fault(place, address, rule) for rule in _address(channel, address))
                yield from (Fault(place, address, rule) for rule in _pictures(channel, pictures.get(address, [])))
        else:
            yield from (Fault(place, value, rule) for rule in _text(channel, field, value))
    for place, number in numbers.items():
        most = MOST_ADDITIONAL if place == "additional_image_link" else channel.limits.images
        if number > most:
            yield Fault(place, number, f"should hold at most {most} pictures")
    if channel.feed not in ("google_ads_assets", "google_supplemental") and numbers.total() > channel.limits.images:
        yield Fault("pictures", numbers.total(), f"should be at most {channel.limits.images}")


def _values(part: Any, field: str = "", place: str = "") -> Iterator[tuple[str, str, str]]:
    """The texts of an entry: (field, where it is in the entry, text); places in a list are one."""
    if isinstance(part, dict):
        for name, value in part.items():
            yield from _values(value, name, f"{place}.{name}" if place else name)
    elif isinstance(part, list):
        for value in part:
            yield from _values(value, field, place)
    elif isinstance(part, str):
        yield field, place, part


def _text(channel: Channel, field: str, value: str) -> Iterator[str]:
    if field != "cohort_id" and clean(value) != value:
        yield "should be one line without control characters and outer spaces"
    limits = {"id": channel.limits.id, "sku_id": channel.limits.id, "title": channel.limits.title}
    most = MAX_TAG if _LABELS.fullmatch(field) else limits.get(field, len(value))
    if len(value) > most:
        yield f"should have at most {most} characters, has {len(value)}"


def _address(channel: Channel, address: str) -> Iterator[str]:
    if len(address) > channel.limits.url:
        yield f"should have at most {channel.limits.url} characters, has {len(address)}"
    if not address.isascii() or re.search(r"[\s,\"<>\\^`{|}]", address):
        yield "should be ASCII without spaces, commas, quotes and brackets"
    parts = urlsplit(address)
    if parts.scheme != "https" or not parts.hostname:
        yield "should be an https address"
    if "?" in address or "#" in address:
        yield "should have no query and no fragment: channels stop fetching what changes"
    endings = [end for kind in EXTENSIONS.keys() - channel.refused for end in EXTENSIONS[kind]]
    if not address.endswith(tuple(endings)):
        yield f"should end in {', '.join(sorted(endings))}"


def _pictures(channel: Channel, rows: list[dict]) -> Iterator[str]:
    if not rows:
        yield "should be a picture of tables/deliveries"
    for row in rows:
        slot = channel.slots.get(row["slot"])
        if slot is None:
            yield f"is of the slot {row['slot']!r}, which the channel does not have"
        else:
            yield from _picture(row, slot)


def _picture(row: dict, slot: Slot) -> Iterator[str]:
    wide, high = row["width_px"], row["height_px"]
    named = f"the slot {row['slot']}"
    if abs(wide / high / (slot.ratio[0] / slot.ratio[1]) - 1) > RATIO_TOLERANCE:
        yield f"has {wide} x {high} pixels, {named} is {slot.ratio[0]:g} : {slot.ratio[1]:g} within {RATIO_TOLERANCE:.0%}"
    if wide < slot.min_px[0] or high < slot.min_px[1]:
        yield f"has {wide} x {high} pixels, {named} needs {slot.min_px[0]} x {slot.min_px[1]}"
    if row["size_bytes"] > slot.max_bytes:
        yield f"has {row['size_bytes']} bytes, {named} takes {slot.max_bytes}"
    if row["format"] not in slot.formats:
        yield f"is {row['format']}, {named} takes {', '.join(slot.formats)}"
    elif not row["uri"].endswith(EXTENSIONS[row["format"]]):
        yield f"is {row['format']}, and its address says otherwise"
