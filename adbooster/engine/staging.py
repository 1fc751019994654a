"""Rows of a dataset as Parquet parts below a run's folder, each whole when it appears."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from ray.data import Dataset

from adbooster.engine.progress import Progress
from adbooster.engine.stage_times import blocked_s
from adbooster.storage.objects import Root

_PART = pa.schema([("rows", pa.int64()), ("part", pa.binary())])


class Staged(NamedTuple):
    """What was staged, and Ray Data's account of how; `blocked_s` as of stage_times."""

    rows: list[pa.Table]
    stats: str
    blocked_s: Mapping[str, float] = {}


def stage_parts(
    ds: Dataset,
    root: Root,
    folder: str,
    leave_out: str | None = None,
    enough: Callable[[list[pa.Table]], bool] | None = None,
    progress: Progress | None = None,
    on_part: Callable[[pa.Table], None] | None = None,
) -> Staged:
    """Write the rows as Parquet parts below the root as they are finished; earlier parts of the folder stay.

    Parts are whole when they appear, and named by their content: a task that Ray runs again replaces its own.
    Rows that carry the reject word `leave_out` are neither written nor returned. When a whole block is left out,
    `enough` is called with the rows so far; if it returns true, the rest of `ds` is not run. `on_part` gets each part as
    it arrives.
    """

    def part(rows: pa.Table) -> pa.Table:
        count = rows.num_rows
        if leave_out:
            rows = rows.filter(pc.not_equal(pc.fill_null(rows["reject"], ""), leave_out))
        buffer = pa.BufferOutputStream()
        pap.write_table(rows, buffer)
        content = buffer.getvalue().to_pybytes()
        if rows.num_rows:
            root.write(f"{folder}/{hashlib.sha256(content).hexdigest()[:32]}.parquet", content)
        return pa.table({"rows": [count], "part": [content if rows.num_rows else None]}, _PART)

    parts: list[pa.Table] = []
    staging = ds.map_batches(part, batch_size=None, batch_format="pyarrow")
    # Closing the iterator ends the pools: Ray Data takes 2 ms a row of 16-row blocks even where nothing is done to them.
    found = iter(staging.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with closing(found) as batches:  # pyright: ignore[reportArgumentType]  # a generator, declared as an iterator
        for batch in batches:
            for row in batch.to_pylist():
                if row["part"] is not None:
                    parts.append(pap.read_table(pa.BufferReader(row["part"])))
                    if on_part:
                        on_part(parts[-1])
                if progress:
                    progress.add(row["rows"])
            if enough and pc.all(pc.is_null(batch["part"])).as_py() and enough(parts):
                break
    return Staged(parts, staging.stats(), blocked_s(staging))
