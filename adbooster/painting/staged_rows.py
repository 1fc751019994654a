"""Painted rows that are staged and not published yet."""

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.storage import tables
from adbooster.storage.objects import Root


def staged_folder(run_id: str, recipe_id: str) -> str:
    """Where a run stages what it paints under a recipe; relative to the root."""
    return f"runs/{run_id}/staged/creatives-{recipe_id}"


def staged_creatives(root: Root, run_id: str, recipe_id: str) -> pa.Table:
    """What this run and unfinished runs of the same recipe have painted and not published (schema.STAGED)."""
    unfinished = [run for run in root.folders("runs") if not root.exists(f"runs/{run}/report.json")]
    parts = [
        tables.read_staged(root, staged_folder(run, recipe_id), schema.STAGED)
        for run in dict.fromkeys([run_id, *unfinished])
    ]
    painted = pa.concat_tables(parts)
    painted = painted.filter(pc.is_null(painted["reject"]))
    first: dict[tuple, int] = {}
    for i, key in enumerate(zip(painted["creative_id"].to_pylist(), painted["round"].to_pylist(), strict=True)):
        first.setdefault(key, i)
    return painted.take(pa.array(list(first.values()), pa.int64()))
