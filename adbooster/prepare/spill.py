"""Rows that come as a stream and are needed part by part, kept meanwhile in a folder of this machine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from adbooster.contracts.naming import BUCKETS
from adbooster.storage.buckets import Part, numbers

FILES = 64  # of one spill
WIDTH = BUCKETS // FILES  # buckets in each
_BUCKET = "spilled_bucket"
_ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")


class Spill:
    """Rows with a product_id, written as they come and read by ranges of buckets; those of a product stay in order."""

    def __init__(self, folder: Path, schema: pa.Schema):
        folder.mkdir()
        self.folder, self.schema = folder, schema
        self.writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, rows: pa.Table) -> None:
        """Rows of the spill's schema."""
        rows = rows.append_column(_BUCKET, numbers(rows["product_id"]))
        file = rows[_BUCKET].to_numpy() // WIDTH
        order = np.argsort(file, kind="stable")
        sorted_rows, ends = rows.take(pa.array(order)), np.searchsorted(file[order], np.arange(FILES + 1))
        for n in np.flatnonzero(np.diff(ends)).tolist():
            self._writer(n).write_table(sorted_rows.slice(ends[n], ends[n + 1] - ends[n]).combine_chunks())

    def close(self) -> None:
        """After the last row and before the first is read."""
        for writer in self.writers.values():
            writer.close()

    def read(self, part: Part) -> pa.Table:
        """The rows of one part, each column in one piece."""
        tables = [self.schema.empty_table(), *self._tables(part)]
        return pa.concat_tables(tables).combine_chunks()

    def _tables(self, part: Part) -> Iterator[pa.Table]:
        for n in sorted(self.writers):
            held = Part(n * WIDTH, (n + 1) * WIDTH)
            if not held.reaches(part):
                continue
            with pa.OSFile(str(self.folder / f"{n}.arrows")) as file, pa.ipc.open_stream(file) as stream:
                rows = stream.read_all()
            if not held.within(part):
                rows = rows.filter(part.has(rows[_BUCKET]))
            yield rows.select(self.schema.names)

    def _writer(self, n: int) -> pa.ipc.RecordBatchStreamWriter:
        if n not in self.writers:
            schema = self.schema.append(pa.field(_BUCKET, pa.int32()))
            self.writers[n] = pa.ipc.new_stream(str(self.folder / f"{n}.arrows"), schema, options=_ZSTD)
        return self.writers[n]
