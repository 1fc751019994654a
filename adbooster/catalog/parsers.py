"""A feed's bytes to rows, whatever its format: streamed, nothing expanded, nothing followed, every row of bounded size."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from lxml import etree

from adbooster.catalog.formats import MALFORMED, MAX_TEXT, Detected, Fields, Names, Row, delimiter, encoding
from adbooster.contracts.errors import ConfigError

MAX_ROW = 1 << 20  # characters (XML: bytes) of one row; a longer one is malformed
CHUNK_BYTES = 1 << 16
MAX_RATIO, RATIO_FROM_BYTES = 200, 64 << 20  # of gzip; text shrinks to a tenth, zeros to a thousandth
MAX_COLUMN_BYTES, MAX_COLUMN_VALUES = 1 << 30, 50_000_000  # of one Parquet column in a row group
PARQUET_ROWS = 1024
OVERSIZED = "adbooster-oversized"  # attribute of the empty item that stands for one that was too long

csv.field_size_limit(MAX_ROW)


def rows(stream: BinaryIO, detected: Detected, columns: dict[str, str], what: str, fields: Fields) -> Iterator[Row]:
    """The rows of an opened (and unzipped) feed, with Google's names; one that cannot be read has the key `malformed`.

    columns  our name: the feed's name, for feeds with names of their own
    fields   that are read, and that the feed as a whole must have
    raises   ConfigError if the file as a whole is no feed of this format, is cut short, or lacks a needed column
    """
    names = Names(columns, what, fields)
    kind = detected.format.rsplit("_", 1)[-1]
    if kind == "parquet" and detected.gzipped:
        raise ConfigError(f"{what} is gzipped Parquet; Parquet compresses itself, give it as it is")
    parse = {"xml": _xml, "tsv": _text, "csv": _text, "jsonl": _jsonl, "parquet": _parquet}[kind]
    try:
        parsed = parse(stream, names, kind)
        yield from _with_needed(parsed, names) if kind in ("xml", "jsonl") else parsed
    except (pa.ArrowException, etree.LxmlError, csv.Error, EOFError, zlib.error, OSError, UnicodeError) as e:
        raise ConfigError(f"{what} is not a feed that can be read as {detected.format}: {str(e)[:300]}") from e


class Unzipped(io.RawIOBase):
    """The content of a gzipped stream; OSError where it unpacks to far more than text does."""

    def __init__(self, zipped: BinaryIO):
        self.zipped, self.content, self.size_bytes = zipped, gzip.GzipFile(fileobj=zipped), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self.content.readinto(buffer)
        self.size_bytes += n
        if self.size_bytes > RATIO_FROM_BYTES and self.size_bytes > MAX_RATIO * self.zipped.tell():
            raise OSError(f"it unpacks to more than {MAX_RATIO} times its size")
        return n


def _with_needed(parsed: Iterator[Row], names: Names) -> Iterator[Row]:
    """For formats without a header: the first thousand rows together must show every needed column."""
    first: list[Row] = []
    for row in parsed:
        first.append(row)
        if len(first) == 1000 or set(names.fields.needed) <= set(names.seen.values()):
            break
    if any(MALFORMED not in row for row in first):
        names.require(names.seen)
    yield from first
    yield from parsed


class _Lines:
    """Lines of a text for csv.reader; csv.Error for a line or a row longer than MAX_ROW, of which the rest is passed over."""

    def __init__(self, text: io.TextIOWrapper):
        self.text, self.taken = text, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self.text.readline(MAX_ROW)
        if not line:
            raise StopIteration
        self.taken += len(line)
        if len(line) == MAX_ROW or self.taken > MAX_ROW:
            while line and not line.endswith(("\n", "\r")):
                line = self.text.readline(MAX_ROW)
            raise csv.Error(f"a row of more than {MAX_ROW} characters")
        return line


def _text(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    """Delimited text. Google's tab-delimited form knows no quotes; a row with fewer cells ends in empty ones."""
    start = stream.peek(4)[:4] if hasattr(stream, "peek") else b""
    text = io.TextIOWrapper(stream, encoding=encoding(start), errors="replace", newline="")
    first = text.readline(MAX_ROW)
    separator = "\t" if kind == "tsv" else delimiter(first)
    how = {"delimiter": separator, "quoting": csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL}
    header = next(csv.reader([first.lstrip("\ufeff")], **how), [])
    names.require(header)
    used = [(i, name) for i, name in enumerate(header) if names(name)]
    lines = _Lines(text)
    reader = csv.reader(lines, **how)
    while True:
        lines.taken = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            yield {MALFORMED: str(e)}
            continue
        if len(cells) > len(header) and any(cells[len(header) :]):
            yield {MALFORMED: f"{len(cells)} cells under {len(header)} columns", "id": cells[0][:MAX_TEXT]}
        elif any(cells):
            yield names.row((name, cells[i]) for i, name in used if i < len(cells))


def _jsonl(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    while line := stream.readline(MAX_ROW):
        if len(line) == MAX_ROW:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW)
            yield {MALFORMED: f"a line of more than {MAX_ROW} bytes"}
        elif line.strip():
            yield _product(line, names)


def _product(line: bytes, names: Names) -> Row:
    try:
        product = json.loads(line)
        if not isinstance(product, dict):
            return {MALFORMED: "not an object"}
        inner = product.get("productAttributes")  # of a product input of Google's Merchant API
        return names.row([*product.items(), *(inner.items() if isinstance(inner, dict) else ())])
    except (ValueError, RecursionError) as e:
        return {MALFORMED: str(e)}


def _parquet(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    """Texts are read as dictionaries and cut before they are spread over their rows: a few bytes can stand for gigabytes."""
    header = pap.read_schema(stream)
    texts = [field.name for field in header if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    stream.seek(0)
    file = pap.ParquetFile(stream, read_dictionary=texts)
    names.require(header.names)
    used = list(dict.fromkeys(name for name in header.names if names(name)))
    _check_size(file, names)
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=used):
        columns = [_cut(column, names.fields.longest) for column in batch.columns]
        for values in zip(*columns, strict=True):
            yield names.row(zip(batch.schema.names, values, strict=True))


def _check_size(file: pap.ParquetFile, names: Names) -> None:
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        for i in range(about.num_columns):
            column = about.column(i)
            large = column.total_uncompressed_size > MAX_COLUMN_BYTES or column.num_values > MAX_COLUMN_VALUES
            if large and names(column.path_in_schema.split(".")[0]):
                raise ConfigError(
                    f"{names.what} has {column.num_values} values of {column.path_in_schema} in one row group, "
                    f"{column.total_uncompressed_size} bytes; write it in row groups of at most a million rows"
                )


def _cut(column: pa.Array, longest: int) -> list:
    if pa.types.is_dictionary(column.type):
        values = pc.utf8_slice_codeunits(column.dictionary, 0, longest).to_pylist()
        return [None if i is None else values[i] for i in column.indices.to_pylist()]
    return column.to_pylist()


def _xml(stream: BinaryIO, names: Names, kind: str) -> Iterator[Row]:
    """RSS items or Atom entries. No entity is expanded, no DTD loaded, no address followed; names in g: go first."""
    safe: dict[str, Any] = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}
    source: BinaryIO | _Utf8 = stream
    if encoding(stream.peek(4)[:4] if hasattr(stream, "peek") else b"") == "utf-16":
        source, safe["encoding"] = _Utf8(stream), "utf-8"
    parser = etree.XMLPullParser(events=("end",), tag=("{*}item", "{*}entry"), **safe)
    for chunk in _bounded_items(source):
        parser.feed(chunk)
        for _, item in parser.read_events():
            yield _item(item, names)
    parser.close()
    for _, item in parser.read_events():
        yield _item(item, names)


def _item(item: etree._Element, names: Names) -> Row:
    declared = item.getroottree().docinfo.internalDTD
    if declared is not None and any(True for _ in declared.iterentities()):
        raise ConfigError(f"{names.what} is not a feed that can be read: its XML declares entities")
    if item.get(OVERSIZED):
        row = {MALFORMED: f"an item of more than {MAX_ROW} bytes"}
    else:
        children = [c for c in item if isinstance(c.tag, str)]
        children.sort(key=lambda c: "base.google.com" not in c.tag)
        row = names.row(pair for child in children for pair in _element(child))
    item.clear()
    parent = item.getparent()
    while parent is not None and item.getprevious() is not None:
        del parent[0]
    return row


def _element(child: etree._Element) -> Iterator[tuple[str, Any]]:
    name = etree.QName(child).localname
    if name == "image" and len(child):
        links = [part.text for part in child if isinstance(part.tag, str) and etree.QName(part).localname == "url"]
        yield from (("image[0].url", link) for link in links)
    elif child.text and child.text.strip():
        yield name, child.text.strip()
    elif name == "link" and child.get("href") and child.get("rel", "alternate") == "alternate":
        yield name, child.get("href")


class _Utf8:
    """The bytes of a text in UTF-16 as UTF-8."""

    def __init__(self, stream: BinaryIO):
        self.text = io.TextIOWrapper(stream, encoding="utf-16", errors="replace", newline="")

    def read(self, size: int) -> bytes:
        return self.text.read(size).encode(errors="replace")


_EDGE = re.compile(rb"</(?:[\w.-]+:)?(?:item|entry)\s*>|<(?:[\w.-]+:)?(?:item|entry)(?=[\s/>])")


def _bounded_items(stream: BinaryIO | _Utf8) -> Iterator[bytes]:
    """A feed's XML in pieces; an item of more than MAX_ROW bytes is replaced by an empty one that is marked so.

    libxml2 holds an element whole, however long, and gives up the file beyond 10 MB: bytes are counted before it. What is
    as long outside of items is dropped, after which the document cannot be read.
    """
    held, dropping = b"", False
    while chunk := stream.read(CHUNK_BYTES):
        held += chunk
        edges = [m.end() if m[0].startswith(b"</") else m.start() for m in _EDGE.finditer(held)]
        if edges := [at for at in edges if at]:
            first, last = edges[0], edges[-1]
            whole = not dropping and first <= MAX_ROW
            yield held[:last] if whole else b'<item %s="1"/>' % OVERSIZED.encode() + held[first:last]
            held, dropping = held[last:], False
        elif len(held) > MAX_ROW:
            held, dropping = held[-256:], True
    if not dropping:
        yield held
