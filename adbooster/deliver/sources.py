"""What feeds are made from: rows of tables/deliveries, what was withdrawn, the order of a product's creatives, facts on products."""

import logging
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.catalog import reader
from adbooster.catalog.formats import Fields
from adbooster.channels import feeds, validation
from adbooster.channels.feeds import CATALOG, NEEDED, Feed, FeedSettings
from adbooster.channels.presets import Channel
from adbooster.contracts.errors import AdboosterError, ConfigError
from adbooster.contracts.text import clean
from adbooster.experiments.withdrawn import KINDS as KINDS
from adbooster.experiments.withdrawn import Kind as Kind
from adbooster.experiments.withdrawn import Withdrawn as Withdrawn
from adbooster.experiments.withdrawn import read_withdrawn
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
COLUMNS = ["product_id", "cohort_id", "creative_id", "slot", "uri", "sha256", "width_px", "height_px"]
COLUMNS += ["size_bytes", "format", "propensity", "reason"]
MAX_TEXT = 10_000  # characters of a description that channels take


class State(NamedTuple):
    """What decides which rows feeds may show: the version of tables/deliveries, and what was withdrawn."""

    version: int | None
    withdrawn: Withdrawn

    @classmethod
    def read(cls, root: Root) -> Self:
        return cls(tables.version(root, "deliveries"), read_withdrawn(root))


class Sources:
    """The rows (schema.DELIVERIES) that feeds are made from, filled or a pair's original, and what the other tables say of their products."""

    def __init__(self, root: Root, rows: pa.Table):
        kept = pc.is_in(pc.fill_null(rows["reason"], "holdout"), pa.array(["holdout", "original"]))
        self.root, self.rows = root, rows.filter(kept)
        creatives = tables.read(root, "creatives", ["creative_id", "margin", "clip_score"]).to_pylist()
        self.scores = {c["creative_id"]: _score(c) for c in creatives}
        self.products: dict[str, dict[str, dict[str, str]]] = {}  # by the address of the catalog

    @classmethod
    def of(cls, root: Root, state: State) -> Self:
        """The rows of one state of the tables, without what was withdrawn."""
        rows = tables.read(root, "deliveries", version=state.version)
        return cls(root, rows.filter(pc.invert(state.withdrawn.among(rows))))

    def feed(self, settings: FeedSettings, last: Mapping[str, dict] | None = None) -> Feed:
        """The feed of one channel, of the rows that it has.

        last    its last entries by product_id, where something has to leave the feed: a catalog that cannot be read does not
                hinder that (their columns CATALOG are taken), nor does what the channel would refuse
        raises  ConfigError or what the storage raises for a catalog that cannot be read, AdboosterError for a feed that the
                channel would refuse; both without `last`
        """
        channel, uri = settings.channel, settings.feeds.catalog_uri
        mine = self.rows.filter(pc.equal(self.rows["channel"], channel.name)).select(COLUMNS).to_pylist()
        mine = [
            row | {"score": self.scores.get(row["creative_id"], 0.0)} for row in mine if row["slot"] in channel.slots
        ]
        order = list(channel.slots)
        mine.sort(key=lambda row: (-row["score"], row["cohort_id"], order.index(row["slot"]), row["uri"] or ""))
        made = feeds.build(settings, mine, self._products(uri, last))
        try:
            validation.check(made, [row for row in mine if row["uri"]])
        except AdboosterError as e:
            if last is None:
                raise
            log.warning("%s, were it not to take something out", e)
        return made

    def _products(self, uri: str, last: Mapping[str, dict] | None) -> Mapping[str, dict[str, str]]:
        wanted = set(self.rows["product_id"].to_pylist())
        if uri in self.products:
            return self.products[uri]
        try:
            self.products[uri] = _products(self.root, uri, wanted)
        except Exception as e:  # whatever keeps the catalog away: an address, a right, a network, its content
            if last is None or not uri:
                raise
            log.warning("the catalog %s cannot be read; its columns are those of the last feed: %s", uri, e)
            known = self._products("", None)
            return {
                product: facts | {name: last[product][name] for name in CATALOG if last.get(product, {}).get(name)}
                for product, facts in known.items()
            }
        return self.products[uri]


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
        for file in reader.read(catalog_uri, fields=_catalog("id")):
            for row in file.rows:
                if (product := found.get(clean(row.get("id", "")))) is not None:
                    product |= {name: row[name] for name in CATALOG if row.get(name)}
    return found


def check_catalog(catalog_uri: str, channels: Iterable[Channel]) -> None:
    """raises ConfigError if the catalog is not there or lacks what channels need; brands are known without it"""
    needed = dict.fromkeys(["id", *(name for c in channels for name in NEEDED.get(c.feed, ()) if name != "brand")])
    try:
        reader.check(catalog_uri, fields=_catalog(*needed))
    except ConfigError as e:
        raise ConfigError(f"feeds.catalog_uri cannot be used: {e}") from e


def _catalog(*needed: str) -> Fields:
    return Fields(("id", *CATALOG), needed, MAX_TEXT)
