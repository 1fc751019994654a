"""A product, cohort or creative out of all feeds at once, without painting or encoding, until that is taken back."""

from datetime import UTC, datetime
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.deliver import feed_files
from adbooster.deliver.config import FeedReport
from adbooster.deliver.feeds import url
from adbooster.deliver.sources import Sources
from adbooster.storage import tables
from adbooster.storage.objects import Root

Kind = Literal["product", "cohort", "creative"]
KINDS: tuple[Kind, ...] = ("product", "cohort", "creative")
SHOWN = 1000  # addresses listed; the rest are counted


class Withdrawn(NamedTuple):
    """Ids that were withdrawn, by kind."""

    product: frozenset[str]
    cohort: frozenset[str]
    creative: frozenset[str]

    def covers(self, row: dict) -> bool:
        """Whether a row with product_id, cohort_id and creative_id is withdrawn."""
        return any(row[f"{kind}_id"] in getattr(self, kind) for kind in KINDS)


def read_withdrawn(root: Root) -> Withdrawn:
    rows = tables.read(root, "withdrawals", ["kind", "value"]).to_pylist()
    return Withdrawn(*(frozenset(r["value"] for r in rows if r["kind"] == kind) for kind in KINDS))


class Withdrawal(BaseModel):
    """What a withdrawal did, or would do."""

    dry_run: bool
    undone: bool = False
    """taken back: the next run of jobs.deliver may deliver again"""
    kind: Kind
    values: list[str]
    new: int
    """of them not withdrawn before; of a withdrawal that is taken back, withdrawn before"""
    rows: int
    """taken out of tables/deliveries"""
    feeds: dict[str, FeedReport]
    """by channel, as they are now"""
    may_be_cached: int
    """files that no feed names any more: they stay where they are until `adbooster vacuum`, and caches may keep them"""
    addresses: list[str]
    """of these files, where channels fetched them; the first thousand"""


def withdraw(root: Root, kind: Kind, values: list[str], run_id: str, dry_run: bool = False) -> Withdrawal:
    """Take what shows any of these out of tables/deliveries in one commit, and write the feeds without it.

    raises  ConfigError if nothing that is live or delivered has such an id; PublishConflict if another run commits meanwhile
    """
    base = tables.version(root, "deliveries")
    rows = tables.read(root, "deliveries", version=base)
    _check_known(root, kind, values)
    hit = pc.is_in(rows[f"{kind}_id"], pa.array(values, pa.string()))
    gone, kept = rows.filter(hit), rows.filter(pc.invert(hit))
    sources = Sources(root, kept)
    made = [feed_files.ready(root, s, sources.feed(s)) for s in feed_files.read_settings(root)]
    reports = {feed.settings.channel.name: feed.report for feed in made}
    bases = {feed.settings.channel.name: feed.settings for feed in made}
    left = set(kept["uri"].to_pylist())
    files = {
        (r["channel"], r["uri"]) for r in gone.select(["channel", "uri"]).to_pylist() if r["uri"] not in left | {None}
    }
    addresses = sorted({url(bases[channel], uri) for channel, uri in files if channel in bases})
    new = [v for v in dict.fromkeys(values) if v not in getattr(read_withdrawn(root), kind)]
    if not dry_run:
        _store(root, kind, values, run_id)  # first: what runs beside this delivers it no more
        version = base
        if gone.num_rows:
            metadata, ids = {"run_id": run_id, "job": "withdraw"}, gone["delivery_id"].to_pylist()
            version = tables.merge(root, "deliveries", rows.slice(0, 0), "delivery_id", base, metadata, delete=ids)
        reports = {f.settings.channel.name: feed_files.publish(root, f, version, run_id) for f in made}
    return Withdrawal(
        dry_run=dry_run,
        kind=kind,
        values=values,
        new=len(new),
        rows=gone.num_rows,
        feeds=reports,
        may_be_cached=len({uri for _, uri in files}),
        addresses=addresses[:SHOWN],
    )


def take_back(root: Root, kind: Kind, values: list[str], run_id: str, dry_run: bool = False) -> Withdrawal:
    """Allow these again; the next run of jobs.deliver delivers what is live of them."""
    known = getattr(read_withdrawn(root), kind)
    if unknown := [value for value in values if value not in known]:
        raise ConfigError(f"the {kind} {unknown[0]!r} is not withdrawn below {root.uri}")
    done = len(set(values)) if dry_run else _remove(root, kind, values, run_id)
    return Withdrawal(
        dry_run=dry_run,
        undone=True,
        kind=kind,
        values=values,
        new=done,
        rows=0,
        feeds={},
        may_be_cached=0,
        addresses=[],
    )


def _check_known(root: Root, kind: Kind, values: list[str]) -> None:
    name = f"{kind}_id"
    known = {
        value for table in ("creatives", "deliveries") for value in tables.read(root, table, [name])[name].to_pylist()
    }
    if unknown := [value for value in values if value not in known]:
        raise ConfigError(f"no {kind} {unknown[0]!r} is live or delivered below {root.uri}")


def _store(root: Root, kind: Kind, values: list[str], run_id: str) -> int:
    """Add ids in one commit; returns how many were not withdrawn before."""
    base = tables.version(root, "withdrawals")
    known = getattr(read_withdrawn(root), kind)
    now = datetime.now(UTC)
    rows = [
        {"withdrawal_id": digest(kind, value), "kind": kind, "value": value, "withdrawn_at": now, "run_id": run_id}
        for value in dict.fromkeys(values)
        if value not in known
    ]
    if rows:
        table = pa.Table.from_pylist(rows, schema.WITHDRAWALS)
        tables.merge(root, "withdrawals", table, "withdrawal_id", base, {"run_id": run_id})
    return len(rows)


def _remove(root: Root, kind: Kind, values: list[str], run_id: str) -> int:
    """Remove ids in one commit; returns how many were withdrawn."""
    base = tables.version(root, "withdrawals")
    gone = [digest(kind, value) for value in dict.fromkeys(values) if value in getattr(read_withdrawn(root), kind)]
    if gone:
        nothing = schema.WITHDRAWALS.empty_table()
        tables.merge(root, "withdrawals", nothing, "withdrawal_id", base, {"run_id": run_id}, delete=gone)
    return len(gone)
