"""Tables by product: read part by part in bounded memory, and changed in one commit that rewrites only parts that change.

A product's rows lie in the bucket that its id falls into, and a file holds the rows of neighbouring buckets. How many
buckets make a part follows from the number of rows, so that a part fits into memory at any size of the table. Files
that were written otherwise (by an earlier version, or when the table was smaller) are read for every part that they
reach into, and divided by the first commit that changes one of their parts.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from deltalake import CommitProperties, DeltaTable
from deltalake import Schema as DeltaSchema
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from adbooster.contracts import schema
from adbooster.contracts.errors import SchemaError
from adbooster.contracts.naming import BUCKETS, bucket
from adbooster.storage import outage, tables
from adbooster.storage.objects import Root, each

PART_ROWS = 1 << 19  # some 300 MB of tables/creatives with all columns
ROW_GROUP = 1 << 16
_UPLOADS = 4  # files at one time
_FILES = 64  # of one spill
_WIDTH = BUCKETS // _FILES  # buckets in each
_SPILLED = "spilled_bucket"
_ZSTD = pa.ipc.IpcWriteOptions(compression="zstd")
_NAME = re.compile(r"buckets-(\d+)-(\d+)-[0-9a-f-]+\.zstd\.parquet")


class Part(NamedTuple):
    """The buckets from `first` up to the one before `after`."""

    first: int
    after: int

    def has(self, numbers: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
        return pc.and_(pc.greater_equal(numbers, self.first), pc.less(numbers, self.after))

    def reaches(self, other: "Part") -> bool:
        return self.first < other.after and other.first < self.after

    def within(self, other: "Part") -> bool:
        return other.first <= self.first and self.after <= other.after


WHOLE = Part(0, BUCKETS)
Scan: TypeAlias = Callable[[list[str]], Iterable[pa.Table]]
"""Gives all rows of something, piece by piece, with the columns that are asked for."""


def parts(rows: int, most: int = PART_ROWS) -> list[Part]:
    """2^n parts of equal width that together hold all buckets: so many that one has about `most` of the rows or fewer."""
    count = min(1 << max(0, -(-rows // most) - 1).bit_length(), BUCKETS)
    step = BUCKETS // count
    return [Part(first, first + step) for first in range(0, BUCKETS, step)]


def numbers(product_ids: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """The bucket of each product (int32)."""
    chunks = []
    for chunk in product_ids.chunks if isinstance(product_ids, pa.ChunkedArray) else [product_ids]:
        coded = chunk.dictionary_encode()
        own = pa.array([bucket(name or "") for name in coded.dictionary.to_pylist()], pa.int32())
        chunks.append(own.take(coded.indices))
    return pa.chunked_array(chunks, pa.int32())


class _File(NamedTuple):
    path: str
    """relative to the table"""
    part: Part
    rows: int
    size_bytes: int


class Snapshot:
    """One version of a table by product; None: a table that was never written, without rows.

    parts  what it is read in, for as many rows as it has or `rows`, whichever is more
    """

    def __init__(self, root: Root, name: str, version: int | None, rows: int = 0, most: int = PART_ROWS):
        self.root, self.name, self.version, self.schema = root, name, version, tables.TABLES[name]
        self.table = None if version is None else tables.open_table(root, name, version)
        self.files = [] if self.table is None else _files(self.table)
        self.rows = sum(file.rows for file in self.files)
        self.parts = parts(max(rows, self.rows), most)

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """The rows of a part, with these columns of the schema; a column that is younger than a file is null."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(c) for c in columns])
        found = [self.rows_of(file, part, wanted) for file in self.files if file.part.reaches(part)]
        return pa.concat_tables([wanted.empty_table(), *found])

    def scan(self, columns: list[str]) -> Iterator[pa.Table]:
        """All rows, part by part."""
        return (self.read(part, columns) for part in self.parts)

    def rows_of(self, file: "_File", part: Part, wanted: pa.Schema) -> pa.Table:
        """The rows of one file that are in the part."""
        path = f"tables/{self.name}/{file.path}"
        with outage.in_words(f"{self.root.uri}/{path}"), self.root.fs.open(self.root.path(path), "rb") as opened:
            parquet = pap.ParquetFile(opened)
            divided, by = not file.part.within(part), "product_id" if file.part == WHOLE else "bucket"
            if divided and by not in wanted.names:
                return self.rows_of(file, part, wanted.append(self.schema.field(by))).select(wanted.names)
            there = set(parquet.schema_arrow.names)
            rows = schema.fill(parquet.read(columns=[n for n in wanted.names if n in there]), wanted)
        if not divided:
            return rows
        return rows.filter(part.has(rows["bucket"] if by == "bucket" else numbers(rows["product_id"])))


def _files(table: DeltaTable) -> list[_File]:
    facts = pa.table(table.get_add_actions()).select(["path", "num_records", "size_bytes"]).to_pylist()
    return [_File(row["path"], _part(row["path"]), row["num_records"] or 0, row["size_bytes"]) for row in facts]


def divided(table: DeltaTable) -> bool:
    """Whether any of its files holds chosen buckets."""
    return any(_NAME.fullmatch(uri.rsplit("/", 1)[-1]) for uri in table.file_uris())


def _part(path: str) -> Part:
    """Told by the name, as Delta keeps the ends of a table's first columns only."""
    name = _NAME.fullmatch(path)
    return Part(int(name[1]), int(name[2])) if name else WHOLE


class Spill:
    """Rows with a product_id, written to this machine's disk as they come and read by parts; those of a product stay in order.

    folder  is made; whoever made the one that it is in removes both
    """

    def __init__(self, folder: Path, wanted: pa.Schema):
        folder.mkdir()
        self.folder, self.schema = folder, wanted
        self.writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def add(self, rows: pa.Table) -> None:
        """Rows of the spill's schema. raises StorageError if the disk is full"""
        rows = rows.append_column(_SPILLED, numbers(rows["product_id"]))
        file = rows[_SPILLED].to_numpy() // _WIDTH
        order = np.argsort(file, kind="stable")
        sorted_rows, ends = rows.take(pa.array(order)), np.searchsorted(file[order], np.arange(_FILES + 1))
        with outage.room(str(self.folder)):
            for n in np.flatnonzero(np.diff(ends)).tolist():
                self._writer(n).write_table(sorted_rows.slice(ends[n], ends[n + 1] - ends[n]).combine_chunks())

    def close(self) -> None:
        """After the last row and before the first is read."""
        with outage.room(str(self.folder)):
            for writer in self.writers.values():
                writer.close()

    def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """The rows of one part, each column in one piece."""
        wanted = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        return pa.concat_tables([wanted.empty_table(), *self._tables(part, wanted)]).combine_chunks()

    def _tables(self, part: Part, wanted: pa.Schema) -> Iterator[pa.Table]:
        for n in sorted(self.writers):
            held = Part(n * _WIDTH, (n + 1) * _WIDTH)
            if not held.reaches(part):
                continue
            names = [*wanted.names, _SPILLED]
            fields = [i for i, name in enumerate([*self.schema.names, _SPILLED]) if name in names]
            with (
                pa.OSFile(str(self.folder / f"{n}.arrows")) as file,
                pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(included_fields=fields)) as stream,
            ):
                for batch in stream:
                    rows = pa.Table.from_batches([batch])
                    rows = rows if held.within(part) else rows.filter(part.has(rows[_SPILLED]))
                    yield rows.select(wanted.names)

    def _writer(self, n: int) -> pa.ipc.RecordBatchStreamWriter:
        if n not in self.writers:
            fields = self.schema.append(pa.field(_SPILLED, pa.int32()))
            self.writers[n] = pa.ipc.new_stream(str(self.folder / f"{n}.arrows"), fields, options=_ZSTD)
        return self.writers[n]


class Change:
    """New rows in place of old ones, part by part, which become live together by one commit.

    Files of parts are made on this machine's disk, and brought below the table by the commit, so that none is old, as a
    vacuum sees it, before it is live. Use as a context: what is on its way is removed at its end.
    base    the version that this run was planned on; None if there was no table
    key     the column that tells rows apart
    parts   which parts there are
    raises  PublishConflict if another run has committed after `base`
    """

    def __init__(self, root: Root, name: str, base: int | None, key: str, parts: list[Part]):
        self.root, self.name, self.base, self.key, self.parts = root, name, base, key, parts
        tables.require(root, name, base)
        self.before = Snapshot(root, name, base)
        self.done: list[Part] = []
        self.made: dict[str, str] = {}  # statistics by the name of the file
        self.removed: list[_File] = []
        self.rows_added = self.rows_removed = 0

    def __enter__(self) -> Self:
        self.folder = tempfile.TemporaryDirectory(prefix="adbooster-parts-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.folder.cleanup()

    def replace(self, part: Part, rows: pa.Table, drop: pa.Array | None = None) -> None:
        """Add `rows` to a part, in place of those with their keys, and drop rows by key. Each part may be given once.

        raises  SchemaError for rows that lack a column, or whose product is not in the part
        """
        wanted = self.before.schema
        rows = schema.check(_with_bucket(rows), wanted, f"new rows of tables/{self.name}")
        if not pc.all(part.has(rows["bucket"])).as_py() and rows.num_rows:
            raise SchemaError(f"new rows of tables/{self.name} hold a product that is not in the part {part}")
        gone = pa.concat_arrays([*rows[self.key].chunks, drop if drop is not None else pa.array([], pa.string())])
        files = [file for file in self.before.files if file.part.reaches(part)]
        if not rows.num_rows and not self._any(files, part, gone):
            return
        old = self.before.read(part)
        kept = old.filter(pc.invert(pc.is_in(old[self.key], gone)))
        self.done.append(part)
        self.removed += [file for file in files if file not in self.removed]
        self.rows_added, self.rows_removed = self.rows_added + rows.num_rows, self.rows_removed + len(old) - len(kept)
        self._write(pa.concat_tables([kept, rows]))

    def _any(self, files: list[_File], part: Part, keys: pa.Array) -> bool:
        """Whether files hold one of the keys in the part."""
        if not len(keys) or not files:
            return False
        return pc.any(pc.is_in(self.before.read(part, [self.key])[self.key], keys)).as_py() or False

    def commit(self, metadata: Mapping[str, str]) -> int | None:
        """Make everything live; returns the version that is live now: `base` where nothing was changed.

        raises  PublishConflict, LockLost; nothing is live then
        """
        if not self.done:
            return self.base
        for part in self.parts:
            rest = [file for file in self.removed if file.part.reaches(part)]
            if rest and part not in self.done:
                self._write(pa.concat_tables([self.before.rows_of(file, part, self.before.schema) for file in rest]))
        each(self._upload, self.made, at_once=_UPLOADS)
        counts = {"rows_added": str(self.rows_added), "rows_removed": str(self.rows_removed)}
        base = tables.add_columns(self.root, self.name, self.base)
        return tables.commit(self.root, self.name, base, {**metadata, **counts}, partial(self._publish, base))

    def _publish(self, base: int | None, commit: CommitProperties) -> None:
        """On top of `base` and no other version."""
        table = None if base is None else tables.open_table(self.root, self.name, base)
        now = int(time.time() * 1000)
        sizes = {name: os.stat(self._local(name)).st_size for name in self.made}
        added = [AddAction(name, sizes[name], {}, now, True, stats) for name, stats in self.made.items()]
        wanted = DeltaSchema.from_arrow(self.before.schema)
        if table is None:
            create_table_with_add_actions(
                f"{self.root.uri}/tables/{self.name}",
                wanted,
                added,
                "error",
                commit_properties=commit,
                storage_options=tables.storage_options(self.root),
            )
            return
        gone = [RemoveAction(file.path, True, now, size=file.size_bytes) for file in self.removed]
        table.create_write_transaction([*added, *gone], "append", wanted, commit_properties=commit)

    def _write(self, rows: pa.Table) -> None:
        """One file of the table, on its way; no rows, no file."""
        if not rows.num_rows:
            return
        if rows["bucket"].null_count:  # of a file that was written before there was the column
            rows = _with_bucket(rows)
        first, last = (pc.min_max(rows["bucket"])[end].as_py() for end in ("min", "max"))
        name = f"buckets-{first}-{last + 1}-{uuid4()}.zstd.parquet"
        with outage.room(self.folder.name):
            pap.write_table(rows, self._local(name), compression="zstd", row_group_size=ROW_GROUP)
        self.made[name] = _stats(rows)

    def _upload(self, name: str) -> None:
        self.root.put_file(self._local(name), f"tables/{self.name}/{name}")

    def _local(self, name: str) -> Path:
        return Path(self.folder.name) / name


def _with_bucket(rows: pa.Table) -> pa.Table:
    own = numbers(rows["product_id"])
    if "bucket" not in rows.column_names:
        return rows.append_column("bucket", own)
    return rows.set_column(rows.schema.get_field_index("bucket"), "bucket", own)


def _stats(rows: pa.Table) -> str:
    """What the commit says of a file, by which readers leave it out; as Delta's protocol has it."""
    ends = {name: pc.min_max(rows[name]).as_py() for name in ("bucket", "product_id")}
    return json.dumps(
        {
            "numRecords": rows.num_rows,
            "minValues": {name: end["min"] for name, end in ends.items()},
            "maxValues": {name: end["max"] for name, end in ends.items()},
            "nullCount": {name: rows[name].null_count for name in ends},
        }
    )
