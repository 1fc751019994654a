"""What feeds are made from: rows of tables/deliveries, the order of a product's creatives, and facts about products."""

import csv
import io
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs

from adbooster.contracts.errors import ConfigError
from adbooster.deliver import feeds
from adbooster.deliver.feeds import CATALOG, Feed, FeedSettings
from adbooster.storage import tables
from adbooster.storage.objects import Root

COLUMNS = ["product_id", "cohort_id", "creative_id", "slot", "uri", "sha256", "width_px", "height_px", "size_bytes"]
MAX_CELL = 1 << 20  # characters


class Sources:
    """The rows (schema.DELIVERIES) that feeds are made from, and what the other tables say of their products."""

    def __init__(self, root: Root, rows: pa.Table):
        self.root, self.rows = root, rows.filter(pc.is_null(rows["reason"]))
        creatives = tables.read(root, "creatives", ["creative_id", "margin", "clip_score"]).to_pylist()
        self.scores = {c["creative_id"]: _score(c) for c in creatives}
        self.products: dict[str, dict[str, dict[str, str]]] = {}  # by the address of the catalog

    def feed(self, settings: FeedSettings) -> Feed:
        """The feed of one channel, of the rows that it has."""
        channel, uri = settings.channel, settings.feeds.catalog_uri
        mine = self.rows.filter(pc.equal(self.rows["channel"], channel.name)).select(COLUMNS).to_pylist()
        mine = [
            row | {"score": self.scores.get(row["creative_id"], 0.0)} for row in mine if row["slot"] in channel.slots
        ]
        order = list(channel.slots)
        mine.sort(key=lambda row: (-row["score"], row["cohort_id"], order.index(row["slot"]), row["uri"]))
        if uri not in self.products:
            self.products[uri] = _products(self.root, uri, set(self.rows["product_id"].to_pylist()))
        return feeds.build(settings, mine, self.products[uri])


def _score(creative: dict) -> float:
    """What a creative is preferred by: how far it is above the product's own picture."""
    return creative["margin"] if creative["margin"] is not None else creative["clip_score"] or 0.0


def _products(root: Root, catalog_uri: str, wanted: Set[str]) -> dict[str, dict[str, str]]:
    """title, brand and, with a catalog, its columns CATALOG, by product_id.

    raises  ConfigError for a catalog that cannot be read
    """
    rows = tables.read(root, "samples", ["product_id", "role", "title", "brand", "retired_at"]).to_pylist()
    found = {
        r["product_id"]: {"title": r["title"] or "", "brand": r["brand"] or ""}
        for r in rows
        if r["role"] == "main" and r["product_id"] in wanted and r["retired_at"] is None
    }
    if catalog_uri:
        with _opened(catalog_uri) as reader:
            for row in reader:
                if (product := found.get(row["id"] or "")) is not None:
                    product |= {name: row[name] for name in CATALOG if row.get(name)}
    return found


def check_catalog(catalog_uri: str) -> None:
    """raises ConfigError if the catalog is not there or lacks a column that channels need"""
    with _opened(catalog_uri) as reader:
        names = reader.fieldnames or ()
        if missing := [name for name in ("id", "link", "price", "availability") if name not in names]:
            raise ConfigError(
                f"feeds.catalog_uri {catalog_uri} has no column {missing[0]!r} in its first line ({', '.join(names)[:200]})"
            )


@contextmanager
def _opened(uri: str) -> Iterator[csv.DictReader]:
    fs, path = url_to_fs(uri)
    if not fs.isfile(path):
        raise ConfigError(f"there is no file at feeds.catalog_uri {uri}")
    csv.field_size_limit(MAX_CELL)
    try:
        with fsspec.open(uri, "rt", encoding="utf-8-sig", newline="") as opened:
            text: io.TextIOBase = opened  # pyright: ignore[reportAssignmentType]  # fsspec has no type for it
            first = text.readline(MAX_CELL)
            tabs = "\t" in first
            names = next(csv.reader([first], delimiter="\t" if tabs else ","), [])
            how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
            yield csv.DictReader(text, [name.strip().lower() for name in names], **how)
    except (UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"feeds.catalog_uri {uri} is not CSV or TSV in UTF-8: {e}") from e
