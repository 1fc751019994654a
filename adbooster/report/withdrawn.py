"""What is withdrawn, and which files that were delivered of it caches may still hold."""

from functools import reduce
from operator import or_
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError

from adbooster.storage import tables
from adbooster.storage.objects import Root

MOST_VERSIONS = 20  # of tables/deliveries that are looked through, the newest
LISTED = 100  # ids and files; the rest are counted
KINDS = ("product", "cohort", "creative")


def collect(root: Root, version: int | None) -> dict[str, Any]:
    """Withdrawn ids, newest first, and the files that no row shows any more but are still stored; empty if nothing is withdrawn.

    version  of tables/deliveries that is shown
    """
    rows = tables.read(root, "withdrawals").sort_by([("withdrawn_at", "descending"), ("value", "ascending")])
    if not rows.num_rows:
        return {}
    files = _unnamed(root, rows, version)
    gone = set(root.missing(files))
    cached = sorted(uri for uri in files if uri not in gone)
    first = rows.slice(0, LISTED).select(["kind", "value", "withdrawn_at"]).to_pylist()
    return {
        "ids": rows.num_rows,
        "listed": [r | {"withdrawn_at": r["withdrawn_at"] and r["withdrawn_at"].isoformat()} for r in first],
        "may_be_cached": len(cached),
        "files": [{"uri": uri, "channels": files[uri]} for uri in cached[:LISTED]],
    }


def _unnamed(root: Root, withdrawn: pa.Table, version: int | None) -> dict[str, list[str]]:
    """Files that showed something withdrawn before it was, with their channels, and that no row of `version` names."""
    ids = {kind: withdrawn.filter(pc.equal(withdrawn["kind"], kind))["value"].combine_chunks() for kind in KINDS}
    hit = reduce(or_, (pc.field(f"{kind}_id").isin(values) for kind, values in ids.items()))
    columns, found = ["channel", "uri", *(f"{kind}_id" for kind in KINDS)], []
    for before in sorted(_before(root, withdrawn), reverse=True)[:MOST_VERSIONS]:
        try:
            found.append(tables.read(root, "deliveries", columns, before, hit & pc.field("uri").is_valid()))
        except (DeltaError, OSError, pa.ArrowException):  # past the retention of a vacuum
            continue
    if not found:
        return {}
    rows = pa.concat_tables(found).group_by(["channel", "uri"]).aggregate([])
    live = tables.read(root, "deliveries", ["uri"], version)["uri"].combine_chunks()
    files: dict[str, list[str]] = {}
    for row in rows.filter(pc.invert(pc.is_in(rows["uri"], live))).sort_by("channel").to_pylist():
        files.setdefault(row["uri"], []).append(row["channel"])
    return files


def _before(root: Root, withdrawn: pa.Table) -> set[int]:
    """Versions of tables/deliveries that may show what is withdrawn: those that a withdrawal replaced or found."""
    commits, runs = tables.history(root, "deliveries"), set(withdrawn["run_id"].to_pylist())
    replaced = {c.version - 1 for c in commits if c.run_id in runs}
    times = {at for at in withdrawn["withdrawn_at"].to_pylist() if at}
    found = {max((c.version for c in commits if c.time <= at), default=-1) for at in times}
    return {version for version in replaced | found if version >= 0}
