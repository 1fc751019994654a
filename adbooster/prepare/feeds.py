"""Product feeds to rows: one row a picture of a product."""

import io
import logging
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.text import clean
from adbooster.prepare.formats import HEAD_BYTES, MALFORMED, Detected, FeedFormat, Row, detect
from adbooster.prepare.parsers import CHUNK_BYTES, Unzipped, rows

log = logging.getLogger(__name__)
MAX_LENGTH = {"id": 100, "title": 200, "category": 750, "brand": 100, "image_link": 2000}
MAX_PICTURES = 50  # of one product
CHUNK_ROWS = 8192


class Feed(NamedTuple):
    """A feed as rows of pictures."""

    pictures: pa.Table
    """schema.PICTURES"""
    rows: int
    """products in the feed, bad ones too"""
    format: str
    """the format it was read as"""


def read(feed_uri: str, feed_format: FeedFormat = "auto", columns: dict[str, str] | None = None) -> Feed:
    """The whole feed, parsed as a stream; only the Arrow table of its pictures is held.

    A folder is read file by file, in the order of names; what lies behind http(s) or S3 is copied to a local file first.
    raises  ConfigError if there is no such feed, it is not a feed of the format, is cut short, or lacks a needed column
    """
    expand = Expander()
    chunks = [schema.PICTURES.empty_table()]
    kind = None
    for uri in _files(feed_uri):
        with _opened(uri) as raw:
            kind = _detected(raw.peek(HEAD_BYTES), feed_format, uri)
            stream = io.BufferedReader(Unzipped(raw), CHUNK_BYTES) if kind.gzipped else raw
            chunks += _tables(expand(rows(stream, kind, columns or {}, uri)))
    assert kind is not None
    log.info("read %s as %s: %s", feed_uri, kind.format, kind.why)
    return Feed(pa.concat_tables(chunks), expand.number, kind.format)


def check(feed_uri: str, feed_format: FeedFormat = "auto", columns: dict[str, str] | None = None) -> str:
    """A feed's format, detected from its first rows; raises ConfigError as `read` does, as far as these rows show."""
    uri = _files(feed_uri)[0]
    fs, path = url_to_fs(uri)
    head = _head(fs, path)
    kind = _detected(head, feed_format, uri)
    if kind.format == "parquet":
        with _opened(uri) as raw:
            next(rows(raw, kind, columns or {}, uri), None)
        return kind.format
    whole = len(head) < HEAD_BYTES
    stream = io.BytesIO(head)
    text = io.BufferedReader(Unzipped(stream) if kind.gzipped else stream, CHUNK_BYTES)
    try:
        for _ in rows(text, kind, columns or {}, uri):
            pass
    except ConfigError as e:
        if whole or e.__cause__ is None:  # a head ends in the middle of something
            raise
    return kind.format


def _detected(head: bytes, wanted: FeedFormat, uri: str) -> Detected:
    return detect(head[:HEAD_BYTES], wanted, uri)


def _files(feed_uri: str) -> list[str]:
    """The feed itself, or the files of a folder such as Spark leaves."""
    fs, path = url_to_fs(feed_uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no feed at {feed_uri}")
    if _is_http(feed_uri) or not fs.isdir(path):
        return [feed_uri]
    sizes = {p: about["size"] for p, about in fs.find(path, detail=True).items() if about["type"] == "file"}
    names = sorted(p for p, size in sizes.items() if size and not p.rsplit("/", 1)[-1].startswith((".", "_")))
    if not names:
        raise ConfigError(f"there is no feed at {feed_uri}: the folder is empty")
    return [fs.unstrip_protocol(name) for name in names]


def _is_http(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _head(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    options: dict[str, Any] = {"block_size": 0} if _is_http(path) else {}
    with fs.open(path, **options) as f:
        return cast(bytes, f.read(HEAD_BYTES))


@contextmanager
def _opened(uri: str) -> Iterator[Any]:
    """A local file; what lies elsewhere is copied first, so that one night reads one state of it."""
    fs, path = url_to_fs(uri)
    if "file" in fs.protocol:
        with io.BufferedReader(io.FileIO(path), HEAD_BYTES) as f:
            yield f
        return
    with tempfile.NamedTemporaryFile(prefix="adbooster-feed-") as copy:
        fs.get_file(path, copy.name)
        with io.BufferedReader(io.FileIO(copy.name), HEAD_BYTES) as f:
            yield f


class Expander:
    """Rows of a feed to tuples in the order of schema.PICTURES; bad rows are rows with a reject word."""

    def __init__(self):
        self.seen: set[int] = set()
        self.repeats: Counter[int] = Counter()
        self.number = 0

    def __call__(self, products: Iterable[Row]) -> Iterator[tuple]:
        for product in products:
            self.number += 1
            yield from self._pictures(product)

    def _pictures(self, product: Row) -> Iterator[tuple]:
        product_id = _line(product.get("id"))
        shared = {
            "id": product_id,
            "title": _line(product.get("title")),
            "category": _line(product.get("google_product_category") or product.get("product_type")),
            "brand": _line(product.get("brand")),
        }
        main, *more = product.get("image_link") or [""]
        reject = self._reject(product, shared | {"image_link": main})
        if reject:  # a name of its own, so that the row is kept beside the one it repeats
            known = _mark(product_id[:100])
            nth = self.repeats[known] = self.repeats[known] + 1
            owner = digest(product_id[:100], reject, str(nth))
            shared["id"] = product_id or f"(row {self.number})"
            yield _picture(shared, "main", main, owner, reject)
            return
        yield _picture(shared, "main", main, product_id, _unusable(main) if main else "missing_image")
        extra = (("additional", link) for link in [*more, *product.get("additional_image_link", [])])
        scenes = (("lifestyle", link) for link in product.get("lifestyle_image_link", []))
        for n, (role, link) in enumerate(dict.fromkeys([*extra, *scenes])):
            long = len(link) > MAX_LENGTH["image_link"] or n >= MAX_PICTURES
            yield _picture(shared, role, link, product_id, "field_too_long" if long else _unusable(link))
            if n >= MAX_PICTURES:
                return

    def _reject(self, product: Row, fields: dict[str, str]) -> str | None:
        if MALFORMED in product:
            return "malformed_row"
        if not fields["id"]:
            return "missing_id"
        if any(len(value) > MAX_LENGTH[name] for name, value in fields.items()):
            return "field_too_long"
        mark = _mark(fields["id"])
        if mark in self.seen:
            return "duplicate_id"
        self.seen.add(mark)
        return None


def _mark(product_id: str) -> int:
    """64 bits of an id, the same for ids that look alike (Unicode's NFKC): a million of them in some 70 MB."""
    return int(digest(unicodedata.normalize("NFKC", product_id))[:16], 16)


def _unusable(link: str) -> str | None:
    """The reject word of a link that holds control or format characters, or halves of a surrogate pair."""
    hidden = not link.isprintable() and any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in link)
    return "refused_address" if hidden else None


def _line(text: str | None) -> str:
    if not text:
        return ""
    return " ".join(text.split()) if text.isprintable() else clean(text)


def _picture(shared: dict[str, str], role: str, link: str, owner: str, reject: str | None) -> tuple:
    """sample_id, product_id, role, title, category, brand, image_uri, reject; nothing longer than allowed"""
    link = link.encode(errors="replace").decode()  # JSON can hold halves of surrogate pairs, which no table can
    sample_id = digest(owner, role, link if role != "main" else "")[:32]
    texts = (shared[name][: MAX_LENGTH[name]] for name in ("title", "category", "brand"))
    return sample_id, shared["id"][: MAX_LENGTH["id"]], role, *texts, link[: MAX_LENGTH["image_link"]], reject


def _tables(pictures: Iterator[tuple]) -> Iterator[pa.Table]:
    chunk: list[tuple] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == CHUNK_ROWS:
            yield _table(chunk)
            chunk = []
    if chunk:
        yield _table(chunk)


def _table(chunk: list[tuple]) -> pa.Table:
    columns = zip(*chunk, strict=True)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema.PICTURES, strict=True)], schema.PICTURES)
