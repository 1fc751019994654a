"""Delta tables below a root: read one version, and merge a run's rows in one commit."""

import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pap
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from adbooster import schema
from adbooster.errors import PublishConflict
from adbooster.objects import Root

log = logging.getLogger(__name__)
TABLES = {"samples": schema.SAMPLES, "cohorts": schema.COHORTS, "creatives": schema.CREATIVES}


def storage_options(root: Root) -> dict[str, str] | None:
    """delta-rs settings for S3: conditional puts make commits safe; an http endpoint is allowed only if one is set."""
    if not root.uri.startswith("s3://"):
        return None
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    return {"conditional_put": "etag", "AWS_ALLOW_HTTP": str(endpoint.startswith("http://")).lower()}


def open_table(root: Root, name: str, version: int | None = None) -> DeltaTable | None:
    """The table, at a version or the newest; None if it was never written."""
    try:
        return DeltaTable(f"{root.uri}/tables/{name}", version=version, storage_options=storage_options(root))
    except TableNotFoundError:
        return None


def read(root: Root, name: str, columns: list[str] | None = None, version: int | None = None) -> pa.Table:
    """The rows of one version of a table (empty if it was never written), with the columns of schema.py."""
    wanted = TABLES[name] if columns is None else pa.schema([TABLES[name].field(c) for c in columns])
    table = open_table(root, name, version)
    if table is None:
        return wanted.empty_table()
    return schema.check(table.to_pyarrow_table(columns=wanted.names), wanted, f"tables/{name}")


def version(root: Root, name: str) -> int | None:
    table = open_table(root, name)
    return None if table is None else table.version()


def merge(
    root: Root,
    name: str,
    rows: pa.Table,
    on: str,
    base: int | None,
    metadata: Mapping[str, str],
    delete: Iterable[str] = (),
) -> int:
    """Add and replace `rows` by the key `on` and drop the keys in `delete`, all in one commit; returns its version.

    base    the version that this run was planned on; None if there was no table
    raises  PublishConflict if another run has committed after `base`; nothing of this run is live then
    """
    rows = schema.check(rows, TABLES[name], f"new rows of tables/{name}")
    commit = CommitProperties(custom_metadata=dict(metadata), max_commit_retries=0)
    table = open_table(root, name)
    if (None if table is None else table.version()) != base:
        raise PublishConflict(
            f"tables/{name} was at version {base} when this run was planned and another run has committed since; "
            "run again: what is already painted is kept"
        )
    try:
        if table is None:
            _create(root, name, rows, commit)
        else:
            _merge_into(table, rows, on, commit, list(delete))
    except (CommitFailedError, DeltaError) as e:
        if version(root, name) == base:
            raise
        raise PublishConflict(f"another run committed to tables/{name} first; nothing of this run is live: {e}") from e
    committed = version(root, name)
    assert committed is not None
    return committed


def _create(root: Root, name: str, rows: pa.Table, commit: CommitProperties) -> None:
    uri = f"{root.uri}/tables/{name}"
    write_deltalake(uri, rows, mode="error", commit_properties=commit, storage_options=storage_options(root))


def _merge_into(table: DeltaTable, rows: pa.Table, on: str, commit: CommitProperties, delete: list[str]) -> None:
    """One MERGE; keys to drop travel as rows of nulls marked `dropped`."""
    dropped = schema.fill(pa.table({on: pa.array(delete, pa.string())}), rows.schema)
    marks = pa.array([False] * rows.num_rows + [True] * dropped.num_rows)
    source = pa.concat_tables([rows, dropped]).append_column("dropped", marks)
    columns = {column: f"source.{column}" for column in rows.column_names}
    merger = table.merge(
        source, f"target.{on} = source.{on}", "source", "target", merge_schema=True, commit_properties=commit
    )
    merger = merger.when_matched_delete("source.dropped").when_matched_update(columns)
    merger.when_not_matched_insert(columns, "NOT source.dropped").execute()


def read_staged(root: Root, folder: str, wanted: pa.Schema) -> pa.Table:
    """The rows of all whole Parquet parts in a folder of a run; a part that a killed run left cut short has none."""
    names = [f"{folder}/{name}" for name in root.names(folder) if name.endswith(".parquet")]
    with ThreadPoolExecutor(16) as threads:
        parts = list(threads.map(lambda name: _part(root, name), names))
    return pa.concat_tables([schema.check(p, wanted, folder) for p in parts if p is not None] or [wanted.empty_table()])


def _part(root: Root, relative: str) -> pa.Table | None:
    try:
        return pap.read_table(pa.BufferReader(root.read(relative)))
    except pa.ArrowInvalid as e:
        log.warning("leaving out the part %s, cut short by a killed run: %s", relative, e)
        return None
