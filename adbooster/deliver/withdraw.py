"""A product, cohort or creative out of all feeds at once, without painting or encoding, until that is taken back."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.channels.feeds import FeedSettings, url
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.contracts.naming import digest
from adbooster.deliver import feed_files
from adbooster.deliver.config import FeedReport
from adbooster.deliver.sources import KINDS as KINDS
from adbooster.deliver.sources import Kind, Sources, State, read_withdrawn
from adbooster.storage import tables
from adbooster.storage.objects import Root

T = TypeVar("T")
log = logging.getLogger(__name__)
SHOWN = 1000  # addresses listed; the rest are counted
ATTEMPTS = 5  # of a commit that other runs overtake


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
    """taken out of tables/deliveries: what shows anything that is withdrawn"""
    feeds: dict[str, FeedReport]
    """by channel, as they are now"""
    failed: dict[str, str] = {}
    """channels whose feed could not be written and is as it was, and why"""
    may_be_cached: int
    """files that no feed names any more: they stay where they are until `adbooster vacuum`, and caches may keep them"""
    addresses: list[str]
    """of these files, where channels fetched them; the first thousand"""


def withdraw(root: Root, kind: Kind, values: list[str], run_id: str, dry_run: bool = False) -> Withdrawal:
    """Keep these out of later runs, take what shows anything withdrawn out of tables/deliveries, then out of every feed.

    Settings, catalogs and feeds are read only after that is stored. A channel that fails stops no other.
    raises  ConfigError if nothing live, delivered or withdrawn has such an id; PublishConflict if others commit all the time
    """
    before = read_withdrawn(root)
    _check_known(root, kind, values, getattr(before, kind))
    if dry_run:
        state = State(tables.version(root, "deliveries"), before.add(kind, values))
        gone, kept = _parts(root, state)
        sources = Sources(root, kept)
        reports, failed = _each_channel(root, lambda channel: feed_files.remade(root, channel, sources).report)
    else:
        _retried(lambda: _store(root, kind, values, run_id))  # first: what runs beside this delivers it no more
        gone, kept = _retried(lambda: _take_out(root, run_id))
        sources_of = lru_cache(1)(partial(Sources.of, root))
        reports, failed = _each_channel(root, lambda channel: feed_files.renew(root, channel, run_id, sources_of))
    left = {*kept["uri"].to_pylist(), None}
    files = {(r["channel"], r["uri"]) for r in gone.select(["channel", "uri"]).to_pylist() if r["uri"] not in left}
    bases = {name: base for name in {channel for channel, _ in files} if (base := _base(root, name))}
    addresses = sorted({url(bases[channel], uri) for channel, uri in files if channel in bases})
    return Withdrawal(
        dry_run=dry_run,
        kind=kind,
        values=values,
        new=len(set(values) - getattr(before, kind)),
        rows=gone.num_rows,
        feeds=reports,
        failed=failed,
        may_be_cached=len({uri for _, uri in files}),
        addresses=addresses[:SHOWN],
    )


def _parts(root: Root, state: State) -> tuple[pa.Table, pa.Table]:
    """Rows of deliveries that show something withdrawn, and the others."""
    rows = tables.read(root, "deliveries", version=state.version)
    hit = state.withdrawn.among(rows)
    return rows.filter(hit), rows.filter(pc.invert(hit))


def _take_out(root: Root, run_id: str) -> tuple[pa.Table, pa.Table]:
    """Remove what shows something withdrawn from tables/deliveries in one commit; returns what is gone and what is left."""
    state = State.read(root)
    gone, kept = _parts(root, state)
    if gone.num_rows:
        metadata, ids = {"run_id": run_id, "job": "withdraw"}, gone["delivery_id"].to_pylist()
        nothing = schema.DELIVERIES.empty_table()
        tables.merge(root, "deliveries", nothing, "delivery_id", state.version, metadata, delete=ids)
    return gone, kept


def _retried(commit: Callable[[], T]) -> T:
    """A commit of ids, which does not depend on what another run commits meanwhile."""
    for _ in range(ATTEMPTS - 1):
        try:
            return commit()
        except PublishConflict as e:
            log.info("another run committed first, trying again: %s", e)
    return commit()


def _each_channel(root: Root, do: Callable[[str], FeedReport]) -> tuple[dict[str, FeedReport], dict[str, str]]:
    """What `do` gives for every channel that has a feed, and why it failed for others."""
    reports, failed = {}, {}
    for channel in feed_files.channels(root):
        try:
            reports[channel] = do(channel)
        except Exception as e:  # whatever is wrong with one channel, the others' feeds must not keep what is withdrawn
            log.warning("the feed of %s could not be written", channel, exc_info=True)
            failed[channel] = f"{type(e).__name__}: {e}"
    return reports, failed


def _base(root: Root, channel: str) -> FeedSettings | None:
    try:
        return feed_files.read_settings(root, channel)
    except (ConfigError, ValueError):
        return None


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


def _check_known(root: Root, kind: Kind, values: list[str], withdrawn: frozenset[str]) -> None:
    name = f"{kind}_id"
    found = (tables.read(root, table, [name])[name].to_pylist() for table in ("creatives", "deliveries"))
    known = withdrawn.union(*found)
    if unknown := [value for value in values if value not in known]:
        raise ConfigError(f"no {kind} {unknown[0]!r} is live, delivered or withdrawn below {root.uri}")


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
