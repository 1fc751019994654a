"""Product feeds to rows: one row a picture of a product."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa

from adbooster.catalog import reader
from adbooster.catalog.formats import MALFORMED, FeedFormat, Row
from adbooster.catalog.worth import Worth
from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.text import clean

log = logging.getLogger(__name__)
MAX_LENGTH = {"id": 100, "title": 200, "category": 750, "brand": 100, "image_link": 2000}
MAX_PICTURES = 50  # of one product
CHUNK_ROWS = 32_768


class Feed(NamedTuple):
    """What is known of a feed once it is read."""

    rows: int
    """products in the feed, bad ones too"""
    pictures: int
    format: str
    """the format it was read as"""
    unnamed: pa.Array
    """sample_id of rows without an id, whose product_id is their number in the feed and changes when it shifts"""
    bad_weights: int
    """rows whose weight could not be read"""
    notes: list[str]
    """sentences about values that say nothing"""


def read(feed_uri: str, feed_format: FeedFormat, columns: dict[str, str], keep: Callable[[pa.Table], object]) -> Feed:
    """Parse the feed as a stream and give its pictures to `keep`, as tables of schema.PICTURES in the order of the feed.

    raises  ConfigError as `catalog.reader.read`
    """
    expand, pictures, kinds = Expander(), 0, []
    for file in reader.read(feed_uri, feed_format, columns):
        kinds.append(file.kind)
        for table in _tables(expand(file.rows)):
            pictures += table.num_rows
            keep(table)
    log.info("read %s as %s: %s", feed_uri, kinds[-1].format, kinds[-1].why)
    unnamed, worth = pa.array(expand.unnamed, pa.string()), expand.worth
    return Feed(expand.number, pictures, kinds[-1].format, unnamed, worth.bad["weight"], worth.notes())


class Expander:
    """Rows of a feed to tuples in the order of schema.PICTURES; bad rows are rows with a reject word."""

    def __init__(self):
        self.seen: set[int] = set()
        self.repeats: Counter[int] = Counter()
        self.unnamed: list[str] = []
        self.worth = Worth()
        self.number = 0

    def __call__(self, products: Iterable[Row]) -> Iterator[tuple]:
        for product in products:
            self.number += 1
            yield from self._pictures(product)

    def _pictures(self, product: Row) -> Iterator[tuple]:
        product_id, worth = _line(product.get("id")), self.worth(product)
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
            picture = _picture(shared, "main", main, owner, worth, reject)
            if not product_id:
                self.unnamed.append(picture[0])
            yield picture
            return
        yield _picture(shared, "main", main, product_id, worth, _unusable(main) if main else "missing_image")
        extra = (("additional", link) for link in [*more, *product.get("additional_image_link", [])])
        scenes = (("lifestyle", link) for link in product.get("lifestyle_image_link", []))
        for n, (role, link) in enumerate(dict.fromkeys([*extra, *scenes])):
            long = len(link) > MAX_LENGTH["image_link"] or n >= MAX_PICTURES
            yield _picture(shared, role, link, product_id, worth, "field_too_long" if long else _unusable(link))
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


def _picture(shared: dict[str, str], role: str, link: str, owner: str, worth: tuple, reject: str | None) -> tuple:
    """The columns of schema.PICTURES; nothing longer than allowed. `worth`: weight and available."""
    link = link.encode(errors="replace").decode()  # JSON can hold halves of surrogate pairs, which no table can
    sample_id = digest(owner, role, link if role != "main" else "")[:32]
    texts = (shared[name][: MAX_LENGTH[name]] for name in ("title", "category", "brand"))
    return sample_id, shared["id"][: MAX_LENGTH["id"]], role, *texts, link[: MAX_LENGTH["image_link"]], *worth, reject


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
