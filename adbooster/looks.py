"""Looks that are known are not taken again: tables/looks keeps what was measured, by what it was measured on and with."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from adbooster import schema, tables
from adbooster.errors import PublishConflict
from adbooster.objects import Root

FOLDER = "staged/looks"


def looks(root: Root, run_id: str, rows: pa.Table, take: Callable[[pa.Table], None]) -> pa.Table:
    """The looks (schema.LOOKS) that `rows` name by look_id, in their order: those kept, and the rest taken now.

    take  looks at rows and stages what it measures in `folder(run_id)`; what a killed run staged is used
    """
    known = _known(root, run_id, rows["look_id"])
    left = rows.filter(pc.invert(pc.is_in(rows["look_id"], known["look_id"])))
    if left.num_rows:
        take(left)
        known = _known(root, run_id, rows["look_id"])
    at = pc.drop_null(pc.index_in(rows["look_id"].combine_chunks(), known["look_id"].combine_chunks()))
    return known.take(at)


def folder(run_id: str) -> str:
    return f"runs/{run_id}/{FOLDER}"


def _known(root: Root, run_id: str, wanted: pa.ChunkedArray) -> pa.Table:
    """One row a look: from the table, this run, and runs that were killed; a rejected one only of this run."""
    kept = tables.read(root, "looks")
    others = [run for run in root.names("runs") if run != run_id and not root.exists(f"runs/{run}/report.json")]
    staged = [tables.read_staged(root, folder(run), schema.LOOKS) for run in others]
    staged = [rows.filter(pc.is_null(rows["reject"])) for rows in staged]
    found = pa.concat_tables([kept, tables.read_staged(root, folder(run_id), schema.LOOKS), *staged])
    found = found.filter(pc.is_in(found["look_id"], wanted))
    first: dict[str, int] = {}
    for i, name in enumerate(found["look_id"].to_pylist()):
        first.setdefault(name, i)
    return found.take(pa.array(list(first.values()), pa.int64()))


def keep(root: Root, run_id: str, found: Iterable[pa.Table], live: pa.ChunkedArray | None = None) -> None:
    """Put looks into tables/looks in one commit, and drop those of creatives that are not `live` (ids) any more."""
    rows = pa.concat_tables(found)
    rows = rows.filter(pc.is_null(rows["reject"]))
    for attempt in range(5):
        base = tables.version(root, "looks")
        there = tables.read(root, "looks", ["look_id", "creative_id"])
        new = rows.filter(pc.invert(pc.is_in(rows["look_id"], there["look_id"])))
        gone = there.filter(pc.is_valid(there["creative_id"])) if live is not None else there.slice(0, 0)
        gone = gone.filter(pc.invert(pc.is_in(gone["creative_id"], live))) if live is not None else gone
        if not new.num_rows and not gone.num_rows:
            return
        try:
            drop = gone["look_id"].to_pylist()
            tables.merge(root, "looks", new, "look_id", base, {"run_id": run_id, "job": "evaluate"}, drop)
            return
        except PublishConflict:  # another evaluation; what it kept and what is kept here do not disturb each other
            if attempt == 4:
                raise
