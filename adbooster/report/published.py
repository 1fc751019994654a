"""What a channel fetches, by its published feed and the settings that it was made with. What cannot be read is said, never raised."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any, cast

from adbooster.channels import feed_text
from adbooster.channels.feeds import FeedSettings, url
from adbooster.storage.objects import Root

MOST_WHOLE = 64 << 20  # bytes of a feed that can only be read whole; CSV and TSV are read line by line
MOST_FACTS, MOST_TEXT = 40, 300  # of an entry that are shown, and characters of each
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SyntaxError, csv.Error)
_IMAGE = re.compile(r"(image\[\d+\])\.")


@dataclass(frozen=True)
class Published:
    """A channel's feed.

    pointer   its latest.json; empty: there is none that can be read
    settings  that it was made with; None where they cannot be read
    entries   those that were asked for, by id
    problem   why entries are missing, in words; "" if nothing is wrong
    """

    pointer: dict[str, Any] = field(default_factory=dict)
    settings: FeedSettings | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""

    def url(self, uri: str) -> str | None:
        """Where the channel finds an object; None without settings that say it."""
        address = url(self.settings, uri) if self.settings else ""
        return address if _is_address(address) else None

    def entry(self, product_id: str, cohort_id: str) -> dict[str, Any] | None:
        """The entry that speaks of a product and cohort."""
        return self.entries.get(cohort_id if self.pointer.get("key") == "cohort_id" else product_id)


def read(root: Root, channel: str, products: Set[str], cohorts: Set[str]) -> Published:
    """A channel's feed with the entries of these products, or of these cohorts where its entries are theirs."""
    try:
        settings = FeedSettings.model_validate(json.loads(root.read(f"channels/{channel}.json")))
    except UNREADABLE:
        settings = None
    try:
        pointer = json.loads(root.read(f"delivery/{channel}/latest.json"))
        key, kind, file = (str(pointer[name]) for name in ("key", "kind", "feed"))
    except FileNotFoundError:
        return Published(settings=settings, problem="it has no feed")
    except UNREADABLE:
        return Published(settings=settings, problem="its latest.json cannot be read")
    wanted = cohorts if key == "cohort_id" else products
    try:
        entries = {str(e[key]): e for e in _entries(root, file, kind, key) if e.get(key) in wanted}
    except _TooLarge as e:
        return Published(pointer, settings, problem=f"its feed is too large to be read here: {e}")
    except UNREADABLE:
        return Published(pointer, settings, problem="its feed cannot be read")
    return Published(pointer, settings, entries)


class _TooLarge(Exception):
    """A feed that would have to be read whole."""


def _entries(root: Root, file: str, kind: str, key: str) -> Iterator[dict[str, Any]]:
    if kind not in ("tsv", "csv"):
        if (size := root.fs.info(root.path(file))["size"]) > MOST_WHOLE:
            raise _TooLarge(f"{size / 1e6:.0f} MB of {kind}")
        yield from feed_text.parse(root.read(file), cast("Any", kind), key).values()
        return
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == "tsv" else {}
    with root.fs.open(root.path(file), "rb") as opened:
        lines: Iterator[bytes] = iter(opened)  # pyright: ignore[reportAssignmentType]  # fsspec has no type for it
        yield from csv.DictReader((line.decode() for line in lines), **how)


def facts(entry: dict[str, Any], cohort_id: str, uris: Set[str]) -> dict[str, Any]:
    """What an entry says of one creative, as [name, text, whether it is an address] in `facts`; `more` counts others.

    Of an entry that lists pictures of several cohorts or products, only those of this cohort or these files.
    """
    entry = {str(name): value for name, value in entry.items()}
    if isinstance(groups := entry.get("cohorts"), dict):
        entry["cohorts"] = {name: group for name, group in groups.items() if name == cohort_id}
    if isinstance(assets := entry.get("assets"), dict):
        entry["assets"] = {kind: [a for a in some if named(a, uris)] for kind, some in assets.items()}
    others = {m[1] for name in entry if (m := _IMAGE.match(name)) and not named(entry.get(f"{m[1]}.url"), uris)}
    told = [
        [name, text[:MOST_TEXT], _is_address(text)]
        for name, text in _flat(entry)
        if text and not ((m := _IMAGE.match(name)) and m[1] in others)
    ]
    return {"facts": told[:MOST_FACTS], "more": max(0, len(told) - MOST_FACTS)}


def named(value: Any, uris: Set[str]) -> Set[str]:
    """Which of these objects a value names by their addresses, one or several with commas between them, anywhere inside."""
    found = (
        part[part.rfind("objects/") :] for _, text in _flat(value) for part in text.split(",") if "objects/" in part
    )
    return uris & set(found)


def _is_address(text: str) -> bool:
    return text.startswith("https://") and "," not in text and len(text) <= MOST_TEXT


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    """Every text, number and truth in a document with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{i}]")
    elif value is not None:
        yield name, str(value)
