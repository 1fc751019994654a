"""tables/looks keeps measurements by picture, text and models; what it holds is not measured again."""

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.storage import tables
from adbooster.storage.objects import Root

FOLDER = "staged/looks"


def known_or_measured(root: Root, run_id: str, rows: pa.Table, measure: Callable[[pa.Table], None]) -> pa.Table:
    """The measurements (schema.LOOKS) that `rows` name by look_id, in their order: stored, or else measured now.

    measure  measures rows and stages the results in `staged_folder(run_id)`; what a killed run staged is used
    """
    known = _known(root, run_id, rows["look_id"])
    left = rows.filter(pc.invert(pc.is_in(rows["look_id"], known["look_id"])))
    if left.num_rows:
        measure(left)
        known = _known(root, run_id, rows["look_id"])
    at = pc.drop_null(pc.index_in(rows["look_id"].combine_chunks(), known["look_id"].combine_chunks()))
    return known.take(at)


def staged_folder(run_id: str) -> str:
    """Where a run stages measurements; relative to the root."""
    return f"runs/{run_id}/{FOLDER}"


def _known(root: Root, run_id: str, wanted: pa.ChunkedArray) -> pa.Table:
    """One row a measurement: from the table, this run, and runs that were killed; a rejected one only of this run."""
    kept = tables.read(root, "looks")
    staged = [
        tables.read_staged(root, staged_folder(run), schema.LOOKS) for run in tables.unfinished_runs(root, run_id)
    ]
    staged = [rows.filter(pc.is_null(rows["reject"])) for rows in staged]
    found = pa.concat_tables([kept, tables.read_staged(root, staged_folder(run_id), schema.LOOKS), *staged])
    found = found.filter(pc.is_in(found["look_id"], wanted))
    first: dict[str, int] = {}
    for i, name in enumerate(found["look_id"].to_pylist()):
        first.setdefault(name, i)
    return found.take(pa.array(list(first.values()), pa.int64()))


def store(root: Root, run_id: str, measured: Iterable[pa.Table], live: pa.ChunkedArray | None = None) -> None:
    """Add measurements to tables/looks in one commit, and drop those of creatives that are not `live` (ids) any more."""
    rows = pa.concat_tables(measured)
    rows = rows.filter(pc.is_null(rows["reject"]))
    for attempt in range(5):
        base = tables.version(root, "looks")
        stored = tables.read(root, "looks", ["look_id", "creative_id"])
        new = rows.filter(pc.invert(pc.is_in(rows["look_id"], stored["look_id"])))
        gone = stored.filter(pc.is_valid(stored["creative_id"])) if live is not None else stored.slice(0, 0)
        gone = gone.filter(pc.invert(pc.is_in(gone["creative_id"], live))) if live is not None else gone
        if not new.num_rows and not gone.num_rows:
            return
        try:
            drop = gone["look_id"].to_pylist()
            tables.merge(root, "looks", new, "look_id", base, {"run_id": run_id, "job": "evaluate"}, drop)
            return
        except PublishConflict:  # another evaluation: its rows and these do not disturb each other
            if attempt == 4:
                raise
