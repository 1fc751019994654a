"""What a feed is, told from its first bytes, and what its columns are called."""

import codecs
import re
import zlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from adbooster.contracts.errors import ConfigError

FeedFormat = Literal[
    "auto", "google_xml", "google_tsv", "meta_xml", "meta_csv", "meta_tsv", "csv", "tsv", "jsonl", "parquet"
]
FIELDS = (
    "id",
    "title",
    "image_link",
    "additional_image_link",
    "lifestyle_image_link",
    "google_product_category",
    "product_type",
    "brand",
    "availability",
    "weight",
)
MAPPED = ("weight",)  # only of the column that the settings name: a shop's own `weight` is in kilograms
NEEDED = ("id", "title", "image_link")
LINKS = ("image_link", "additional_image_link", "lifestyle_image_link")
HEAD_BYTES = 1 << 16
MALFORMED = "malformed"  # key of a row that could not be read
GZIP = b"\x1f\x8b"

# Names of Google's Content API for the same fields.
_ALIASES = {
    "offerid": "id",
    "imagelink": "image_link",
    "additionalimagelinks": "additional_image_link",
    "additional_image_links": "additional_image_link",
    "additionalimagelink": "additional_image_link",
    "lifestyleimagelinks": "lifestyle_image_link",
    "lifestyleimagelink": "lifestyle_image_link",
    "lifestyle_image_links": "lifestyle_image_link",
    "googleproductcategory": "google_product_category",
    "producttypes": "product_type",
}
_SLOT = re.compile(r"image\[(\d+)\]\.url")  # Meta's tagged images
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
Row = dict[str, Any]
MAX_TEXT = 4000  # characters of a value that are kept: more than any field may have
MAX_LINKS = 64  # links of one kind that are kept of a product: more than are used
MAX_NAMES = 10_000  # column names that are remembered


class Fields(NamedTuple):
    """What is read of each product: texts, and the links that are among LINKS.

    taken    all names
    needed   that a feed as a whole must have
    longest  characters of a text that are kept
    """

    taken: tuple[str, ...]
    needed: tuple[str, ...]
    longest: int = MAX_TEXT


PICTURES = Fields(FIELDS, NEEDED)


class Detected(NamedTuple):
    """What a feed is: its format by name, and why it was read as that."""

    format: str
    gzipped: bool
    why: str


def detect(head: bytes, wanted: FeedFormat, what: str) -> Detected:
    """The format of a feed that starts with `head`; its content decides, not its name.

    raises  ConfigError for what no format starts with
    """
    gzipped = head[:2] == GZIP
    if gzipped:
        head = _inflate(head, what)
    if head[:2] == GZIP:
        raise ConfigError(f"{what} is not a feed that can be read: it is gzipped twice; give it gzipped once")
    if wanted != "auto":
        return Detected(wanted, gzipped, "as configured")
    if not head.strip():
        raise ConfigError(f"{what} is not a feed: it is empty")
    if head[:4] == b"PAR1":
        return Detected("parquet", gzipped, "it starts with PAR1")
    if head[:4] == b"PK\x03\x04":
        raise ConfigError(f"{what} is not a feed but a zip archive; unpack it, or give it gzipped")
    text = head.decode(encoding(head), errors="replace").lstrip("\ufeff \t\r\n")
    if not text:
        raise ConfigError(f"{what} is not a feed: it is empty")
    if text.startswith("<"):
        kind = "Atom" if re.search(r"<(\w+:)?feed[\s>]", text) else "RSS 2.0"
        return Detected("google_xml", gzipped, f"it starts as XML, {kind}")
    if text.startswith("{"):
        return Detected("jsonl", gzipped, "it starts with {")
    if text.startswith("["):
        raise ConfigError(f"{what} is not a feed but a JSON array; give JSON lines, one product a line")
    return _delimited(text.splitlines()[0], gzipped)


def _delimited(header: str, gzipped: bool) -> Detected:
    meta = "image[0].url" in header.lower()
    if "\t" in header:
        return Detected("meta_tsv" if meta else "google_tsv", gzipped, "its first line has tabs")
    return Detected("meta_csv" if meta else "csv", gzipped, f"its first line is separated by {delimiter(header)!r}")


def delimiter(header: str) -> str:
    return max(",;|", key=header.count)


def encoding(head: bytes) -> str:
    return next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")


def _inflate(head: bytes, what: str) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error as e:
        raise ConfigError(
            f"{what} is not a feed that can be read: it starts like gzip and cannot be unpacked: {e}"
        ) from e


class Names:
    """The feed's column names to ours."""

    def __init__(self, columns: dict[str, str], what: str, fields: Fields):
        self.what, self.ours, self.seen = what, {theirs: ours for ours, theirs in columns.items()}, {}
        self.fields = fields
        for ours in columns:
            if ours not in fields.taken:
                raise ConfigError(f"columns maps {ours!r}, which no feed needs; it can map {', '.join(fields.taken)}")

    def __call__(self, theirs: str) -> str | None:
        """Our name; `image[n].url` stays; None for what is not used."""
        if theirs in self.seen:
            return self.seen[theirs]
        name = self._our_name(theirs)
        if len(self.seen) < MAX_NAMES:
            self.seen[theirs] = name
        return name

    def _our_name(self, theirs: str) -> str | None:
        if theirs in self.ours:
            return self.ours[theirs]
        plain = theirs.strip().lower().removeprefix("g:").replace(" ", "_")
        plain = _ALIASES.get(plain, plain)
        used = plain in self.fields.taken and plain not in (*self.ours.values(), *MAPPED)
        return plain if used or _SLOT.fullmatch(plain) else None

    def row(self, pairs: Iterable[tuple[str, Any]]) -> Row:
        """One row of (their name, value) pairs: the first value of a name counts, links are collected."""
        out: Row = {}
        slots = []
        for theirs, value in pairs:
            name = self(theirs)
            if name is None or value in (None, "", []):
                continue
            if name == "image_link" and isinstance(value, str):
                _add(out, name, [value.strip()[:MAX_TEXT]])
            elif name in LINKS:
                _add(out, name, _links(value))
            elif name in self.fields.taken:
                out.setdefault(name, _text_of(value[0] if isinstance(value, list) else value)[: self.fields.longest])
            elif len(slots) < MAX_LINKS:
                slots += _links([value])
        if slots:
            links = out.get("image_link") or []
            out["image_link"], rest = (links, slots) if links else (slots[:1], slots[1:])
            _add(out, "additional_image_link", [link for link in rest[:MAX_LINKS] if link not in links])
        return out

    def require(self, known: Iterable[str]) -> None:
        known = list(known)
        have = {self(name) for name in known}
        if any(_SLOT.fullmatch(name or "") for name in have):
            have.add("image_link")
        for name in self.fields.needed:
            if name not in have:
                wanted = next((f" (as {t!r})" for t, ours in self.ours.items() if ours == name), "")
                shown = ", ".join(c[:30] for c in known[:8])
                raise ConfigError(
                    f"the feed {self.what} lacks the column {name!r}{wanted}; it starts with the columns {shown}"
                )


def _text_of(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # ids that a table library made floats
    if isinstance(value, dict):
        return _price(value)
    return value if isinstance(value, str) else str(value)


def _price(value: dict[str, Any]) -> str:
    """`9.50 EUR` of a price as Google's APIs write it; any other object as it is."""
    if "amountMicros" in value and str(value["amountMicros"]).isdecimal():
        amount = f"{Decimal(str(value['amountMicros'])) / 1_000_000:.2f}"
        return f"{amount} {value.get('currencyCode', '')}".strip()
    return f"{value['value']} {value['currency']}" if {"value", "currency"} <= value.keys() else str(value)


def _add(out: Row, name: str, links: list[str]) -> None:
    known = out.setdefault(name, [])
    known += links[: MAX_LINKS - len(known)]


def _links(value: Any) -> list[str]:
    """A cell or a list of them to single links; a cell may hold several, separated by commas."""
    if isinstance(value, dict):
        value = value.get("url") or ""
    if isinstance(value, list | tuple):
        return [link for part in value[:MAX_LINKS] if part for link in _links(part)][:MAX_LINKS]
    between = r",\s*(?=\w+://)" if "://" in str(value) else ","  # addresses may hold commas of their own
    parts = re.split(between, str(value), maxsplit=MAX_LINKS)[:MAX_LINKS]
    return [part.strip()[:MAX_TEXT] for part in parts if part.strip()]
