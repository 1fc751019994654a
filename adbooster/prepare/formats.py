"""A feed's bytes to rows, whatever its format: streamed, nothing expanded, nothing followed."""

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pap
from lxml import etree

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
)
NEEDED = ("id", "title", "image_link")
LINKS = ("image_link", "additional_image_link", "lifestyle_image_link")
HEAD_BYTES = 1 << 16
MALFORMED = "malformed"  # key of a row that could not be read

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

csv.field_size_limit(1 << 20)


class Detected(NamedTuple):
    """What a feed is: its format by name, and why it was read as that."""

    format: str
    gzipped: bool
    why: str


def detect(head: bytes, wanted: FeedFormat, what: str) -> Detected:
    """The format of a feed that starts with `head`; its content decides, not its name.

    raises  ConfigError for what no format starts with
    """
    gzipped = head[:2] == b"\x1f\x8b"
    if gzipped:
        head = _inflate(head, what)
    if wanted != "auto":
        return Detected(wanted, gzipped, "as configured")
    if not head.strip():
        raise ConfigError(f"{what} is not a feed: it is empty")
    if head[:4] == b"PAR1":
        return Detected("parquet", gzipped, "it starts with PAR1")
    if head[:4] == b"PK\x03\x04":
        raise ConfigError(f"{what} is not a feed but a zip archive; unpack it, or give it gzipped")
    text = head.decode(_encoding(head), errors="replace").lstrip("\ufeff \t\r\n")
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
    return Detected("meta_csv" if meta else "csv", gzipped, f"its first line is separated by {_delimiter(header)!r}")


def _delimiter(header: str) -> str:
    return max(",;|", key=header.count)


def _encoding(head: bytes) -> str:
    return next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")


def _inflate(head: bytes, what: str) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error as e:
        raise ConfigError(
            f"{what} is not a feed that can be read: it starts like gzip and cannot be unpacked: {e}"
        ) from e


def rows(stream: BinaryIO, detected: Detected, columns: dict[str, str], what: str) -> Iterator[Row]:
    """The rows of an opened (and unzipped) feed, with Google's names; one that cannot be read has the key `malformed`.

    columns  our name: the feed's name, for feeds with names of their own
    raises   ConfigError if the file as a whole is no feed of this format, is cut short, or lacks a needed column
    """
    names = Names(columns, what)
    kind = detected.format.rsplit("_", 1)[-1]
    if kind == "parquet" and detected.gzipped:
        raise ConfigError(f"{what} is gzipped Parquet; Parquet compresses itself, give it as it is")
    parse = {"xml": _xml, "tsv": _text, "csv": _text, "jsonl": _jsonl, "parquet": _parquet}[kind]
    try:
        parsed = parse(stream, names, kind)
        yield from _with_needed(parsed, names) if kind in ("xml", "jsonl") else parsed
    except (pa.ArrowInvalid, etree.XMLSyntaxError, EOFError, zlib.error, OSError, UnicodeError) as e:
        raise ConfigError(f"{what} is not a feed that can be read as {detected.format}: {e}") from e


class Names:
    """The feed's column names to ours."""

    def __init__(self, columns: dict[str, str], what: str):
        self.what, self.ours, self.seen = what, {theirs: ours for ours, theirs in columns.items()}, {}
        for ours in columns:
            if ours not in FIELDS:
                raise ConfigError(f"columns maps {ours!r}, which no feed needs; it can map {', '.join(FIELDS)}")

    def __call__(self, theirs: str) -> str | None:
        """Our name; `image[n].url` stays; None for what is not used."""
        if theirs not in self.seen:
            self.seen[theirs] = self._our_name(theirs)
        return self.seen[theirs]

    def _our_name(self, theirs: str) -> str | None:
        if theirs in self.ours:
            return self.ours[theirs]
        plain = theirs.strip().lower().removeprefix("g:").replace(" ", "_")
        plain = _ALIASES.get(plain, plain)
        used = plain in FIELDS and plain not in self.ours.values()
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
                out.setdefault(name, []).append(value.strip())
            elif name in LINKS:
                out.setdefault(name, []).extend(_links(value))
            elif name in FIELDS:
                out.setdefault(name, _text_of(value[0] if isinstance(value, list) else value))
            else:
                slots += _links([value])
        if slots:
            links = out.get("image_link") or []
            out["image_link"], rest = (links, slots) if links else (slots[:1], slots[1:])
            out.setdefault("additional_image_link", []).extend(link for link in rest if link not in links)
        return out

    def require(self, known: Iterable[str]) -> None:
        known = list(known)
        have = {self(name) for name in known}
        if any(_SLOT.fullmatch(name or "") for name in have):
            have.add("image_link")
        for name in NEEDED:
            if name not in have:
                wanted = next((f" (as {t!r})" for t, ours in self.ours.items() if ours == name), "")
                shown = ", ".join(c[:30] for c in known[:8])
                raise ConfigError(
                    f"the feed {self.what} lacks the column {name!r}{wanted}; it starts with the columns {shown}"
                )


def _text_of(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # ids that a table library made floats
    return value if isinstance(value, str) else str(value)


def _links(value: Any) -> list[str]:
    """A cell or a list of them to single links; a cell may hold several, separated by commas."""
    if isinstance(value, dict):
        value = value.get("url") or ""
    if isinstance(value, list | tuple):
        return [link for part in value if part for link in _links(part)]
    between = r",\s*(?=\w+://)" if "://" in str(value) else ","  # addresses may hold commas of their own
    return [part.strip() for part in re.split(between, str(value)) if part.strip()]


def _with_needed(parsed: Iterator[Row], names: Names) -> Iterator[Row]:
    """For formats without a header: the first thousand rows together must show every needed column."""
    first = list(islice(parsed, 1000))
    if any(MALFORMED not in row for row in first):
        names.require(names.seen)
    yield from first
    yield from parsed


def _text(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    """Delimited text. Google's tab-delimited form knows no quotes; a row with fewer cells ends in empty ones."""
    start = stream.peek(4)[:4] if hasattr(stream, "peek") else b""
    text = io.TextIOWrapper(stream, encoding=_encoding(start), errors="replace", newline="")
    first = text.readline()
    delimiter = "\t" if kind == "tsv" else _delimiter(first)
    how = {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL}
    header = next(csv.reader([first.lstrip("\ufeff")], **how), [])
    names.require(header)
    used = [(i, name) for i, name in enumerate(header) if names(name)]
    reader = csv.reader(text, **how)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            yield {MALFORMED: str(e)}
            continue
        if len(cells) > len(header) and any(cells[len(header) :]):
            yield {MALFORMED: f"{len(cells)} cells under {len(header)} columns", "id": cells[0]}
        elif any(cells):
            yield names.row((name, cells[i]) for i, name in used if i < len(cells))


def _jsonl(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    for line in stream:
        if not line.strip():
            continue
        try:
            product = json.loads(line)
        except (ValueError, RecursionError) as e:
            yield {MALFORMED: str(e)}
            continue
        yield names.row(product.items()) if isinstance(product, dict) else {MALFORMED: "not an object"}


def _parquet(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    file = pap.ParquetFile(stream)
    header = file.schema_arrow.names
    names.require(header)
    for batch in file.iter_batches(batch_size=8192, columns=[name for name in header if names(name)]):
        for row in batch.to_pylist():
            yield names.row(row.items())


def _xml(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    """RSS items or Atom entries. No entity is expanded, no DTD loaded, no address followed; names in g: go first."""
    safe = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
    for _, item in etree.iterparse(stream, events=("end",), tag=("{*}item", "{*}entry"), **safe):
        declared = item.getroottree().docinfo.internalDTD
        if declared is not None and any(True for _ in declared.iterentities()):
            raise ConfigError(f"{names.what} is not a feed that can be read: its XML declares entities")
        children = [c for c in item if isinstance(c.tag, str)]
        children.sort(key=lambda c: "base.google.com" not in c.tag)
        yield names.row(pair for child in children for pair in _element(child))
        item.clear()
        while item.getprevious() is not None:
            del item.getparent()[0]


def _element(child: etree._Element) -> Iterator[tuple[str, Any]]:
    name = etree.QName(child).localname
    if name == "image" and len(child):
        yield from (("image[0].url", part.text) for part in child if etree.QName(part).localname == "url")
    elif child.text and child.text.strip():
        yield name, child.text.strip()
