"""Delta tables below a root: read one version, and merge a run's rows in one commit."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake import Schema as DeltaSchema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pydantic import BaseModel

from adbooster.contracts import schema
from adbooster.contracts.errors import PublishConflict
from adbooster.storage import lock, outage
from adbooster.storage.objects import Root, each

log = logging.getLogger(__name__)
STAGED_AT_ONCE = 256  # parts that are read together
_FINISHED = "runs/finished.json"
_UPKEEP_OF = "upkeep_of"  # of a commit that changes no row: the entry of the commit whose rows it kept, as JSON
TABLES = {
    "samples": schema.SAMPLES,
    "cohorts": schema.COHORTS,
    "members": schema.MEMBERS,
    "prompts": schema.PROMPTS,
    "creatives": schema.CREATIVES,
    "marks": schema.MARKS,
    "decisions": schema.DECISIONS,
    "looks": schema.LOOKS,
    "sightings": schema.SIGHTINGS,
    "deliveries": schema.DELIVERIES,
    "withdrawals": schema.WITHDRAWALS,
    "shown": schema.SHOWN,
    "outcomes": schema.OUTCOMES,
    "allocations": schema.ALLOCATIONS,
    "vectors": schema.VECTORS,
}


def storage_options(root: Root) -> dict[str, str] | None:
    """delta-rs settings for this root, with the credentials as they are now."""
    return outage.delta_options() if root.uri.startswith("s3://") else None


def open_table(root: Root, name: str, version: int | None = None) -> DeltaTable | None:
    """The table, at a version or the newest; None if it was never written."""
    uri = f"{root.uri}/tables/{name}"
    try:
        with outage.in_words(uri):
            return DeltaTable(uri, version=version, storage_options=storage_options(root))
    except (TableNotFoundError, NotADirectoryError):
        return None


def present(root: Root) -> list[str]:
    """Names of the tables below the root."""
    return [name for name in root.folders("tables") if open_table(root, name) is not None]


def read(
    root: Root,
    name: str,
    columns: list[str] | None = None,
    version: int | None = None,
    where: pc.Expression | None = None,
) -> pa.Table:
    """The rows of one version of a table (empty if it was never written), with the columns of schema.py.

    where  only rows of which this holds, by the columns that are read; the others are never in memory together
    """
    if where is not None:
        # Not by the scan itself: files of a MERGE hold string views, which its filters cannot compare.
        parts = (part.filter(where) for part in batches(root, name, columns, version))
        return pa.concat_tables([_columns(name, columns).empty_table(), *parts])
    wanted, table = _columns(name, columns), open_table(root, name, version)
    if table is None:
        return wanted.empty_table()
    known = _known(table, wanted)
    with outage.in_words(f"{root.uri}/tables/{name}"):
        stored_rows = table.to_pyarrow_table(columns=known.names)
        return schema.fill(schema.check(stored_rows, known, f"tables/{name}"), wanted)


def ever(root: Root, name: str, ids: pa.Array, columns: list[str], versions: int = 60) -> pa.Table:
    """The newest row of each of these ids (of the first of `columns`): live ones, and others from earlier versions of the table.

    versions  that are searched at most, newest first; what a vacuum has removed is not there
    """
    newest, found = version(root, name), [_columns(name, columns).empty_table()]
    for number in range(newest, max(newest - versions, -1), -1) if newest is not None else ():
        if not len(ids):
            break
        try:
            rows = read(root, name, columns, number, pc.is_in(pc.field(columns[0]), ids))
        except (DeltaError, FileNotFoundError):
            if number == newest:
                raise
            break
        found.append(rows)
        ids = pc.filter(ids, pc.invert(pc.is_in(ids, rows[columns[0]].combine_chunks())))
    return pa.concat_tables(found)


def batches(root: Root, name: str, columns: list[str] | None = None, version: int | None = None) -> Iterator[pa.Table]:
    """The rows that `read` gives, a part at a time: a table of any size in the memory of some parts."""
    wanted, table = _columns(name, columns), open_table(root, name, version)
    if table is None:
        return
    known = _known(table, wanted)
    with outage.in_words(f"{root.uri}/tables/{name}"):
        scan = {"batch_size": 65_536, "batch_readahead": 4, "fragment_readahead": 1}
        for batch in table.to_pyarrow_dataset().to_batches(columns=known.names, **scan):
            yield schema.fill(schema.check(pa.Table.from_batches([batch]), known, f"tables/{name}"), wanted)


def _columns(name: str, columns: list[str] | None) -> pa.Schema:
    return TABLES[name] if columns is None else pa.schema([TABLES[name].field(c) for c in columns])


def _known(table: DeltaTable, wanted: pa.Schema) -> pa.Schema:
    """The wanted columns that the table has; those that are younger than it are null."""
    stored = {f.name for f in table.schema().fields}
    return pa.schema([f for f in wanted if f.name in stored])


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
    table = require(root, name, base)

    def write(commit: CommitProperties) -> None:
        if table is None:
            _create(root, name, rows, commit)
        else:
            _merge_into(table, rows, on, commit, list(delete))

    return commit(root, name, base, metadata, write)


def require(root: Root, name: str, base: int | None) -> DeltaTable | None:
    """The table, which is still at version `base`; None if it was never written.

    raises  PublishConflict if another run has committed since
    """
    table = open_table(root, name)
    if (None if table is None else table.version()) != base:
        raise PublishConflict(
            f"tables/{name} was at version {base} when this run was planned and another run has committed since; "
            "run again: what is already painted is kept"
        )
    return table


def add_columns(root: Root, name: str, base: int | None) -> int | None:
    """Give an older table the columns that are younger than it, null in all its rows; the version that is the newest then."""
    table = require(root, name, base)
    if table is None:
        return base
    stored = {f.name for f in table.schema().fields}
    if not (young := [f for f in DeltaSchema.from_arrow(TABLES[name]).fields if f.name not in stored]):
        return base
    return commit(root, name, base, _kept(table), lambda mine: table.alter.add_columns(young, commit_properties=mine))


def commit(
    root: Root, name: str, base: int | None, metadata: Mapping[str, str], write: Callable[[CommitProperties], object]
) -> int:
    """One commit on top of `base`; returns its version.

    A night that has lost its lock commits nothing (LockLost). After an error `commit_id` shows whose commit is there: a
    storage that answers with an error may have kept it.
    """
    lock.fence(root)
    commit_id = uuid4().hex
    mine = CommitProperties(custom_metadata={**metadata, "commit_id": commit_id}, max_commit_retries=0)
    try:
        with outage.in_words(f"{root.uri}/tables/{name}"):
            write(mine)
    except (CommitFailedError, DeltaError, OSError) as e:
        table = open_table(root, name)
        now = None if table is None else table.version()
        if now == base or table is None or now is None:
            raise
        since = table.history(now - (-1 if base is None else base))
        if not any(entry.get("commit_id") == commit_id for entry in since):
            raise PublishConflict(
                f"another run committed to tables/{name} first; nothing of this run is live: {e}"
            ) from e
        log.warning("the commit to tables/%s was answered with an error and is there: %s", name, e)
    return 0 if base is None else base + 1


def restore(root: Root, name: str, to: int, base: int, metadata: Mapping[str, str]) -> int:
    """Make the rows of version `to` those of a new commit on top of `base`, the newest; returns its version.

    raises  PublishConflict if another run has committed after `base`; nothing is changed then
    """
    table = open_table(root, name)
    if table is None or table.version() != base:
        raise PublishConflict(f"another run committed to tables/{name} after version {base}; nothing was rolled back")
    return commit(root, name, base, metadata, lambda commit: table.restore(to, commit_properties=commit))


def upkeep(root: Root, name: str, write: Callable[[DeltaTable, CommitProperties], object]) -> None:
    """One commit by `write` that changes no row, such as a compaction.

    It carries what the commit said whose rows it keeps, so that `metadata` and `published` give that also when the log
    does not reach back to it any more. A job that takes no lock may commit meanwhile: Delta puts this commit on top of that
    one where both can be, and else nothing is changed.
    raises  PublishConflict
    """
    table = open_table(root, name)
    if table is None:
        return
    commit(root, name, table.version(), _kept(table), lambda mine: write(table, mine))


def _kept(table: DeltaTable) -> dict[str, str]:
    """Metadata of a commit that changes no row."""
    return {_UPKEEP_OF: json.dumps(_published(table))}


def _create(root: Root, name: str, rows: pa.Table, commit: CommitProperties) -> None:
    uri = f"{root.uri}/tables/{name}"
    write_deltalake(uri, rows, mode="error", commit_properties=commit, storage_options=storage_options(root))


def _merge_into(table: DeltaTable, rows: pa.Table, on: str, commit: CommitProperties, delete: list[str]) -> None:
    """One MERGE; keys to drop travel as rows of nulls marked `dropped`."""
    dropped = schema.fill(pa.table({on: pa.array(delete, pa.string())}), rows.schema)
    marks = pa.array([False] * rows.num_rows + [True] * dropped.num_rows)
    source = pa.concat_tables([rows, dropped]).append_column("dropped", marks)
    columns = {column: f"source.{column}" for column in rows.column_names}
    same = f"target.{on} = source.{on}"
    merger = table.merge(source, same, "source", "target", merge_schema=True, commit_properties=commit)
    merger = merger.when_matched_delete("source.dropped").when_matched_update(columns)
    merger.when_not_matched_insert(columns, "NOT source.dropped").execute()


def read_staged(root: Root, folder: str, wanted: pa.Schema) -> pa.Table:
    """The rows of all whole Parquet parts in a folder of a run, as `staged_parts` gives them."""
    return pa.concat_tables([wanted.empty_table(), *staged_parts(root, folder, wanted)])


def staged_parts(root: Root, folder: str, wanted: pa.Schema) -> Iterator[pa.Table]:
    """The whole Parquet parts in a folder of a run; one that a killed run left cut short is passed over.

    A column that is younger than a part is null.
    """
    names = [f"{folder}/{name}" for name in root.files(folder) if name.endswith(".parquet")]
    for at in range(0, len(names), STAGED_AT_ONCE):
        yield from each(partial(_part, root, wanted), names[at : at + STAGED_AT_ONCE])


def unfinished_runs(root: Root, but: str = "") -> list[str]:
    """Runs without a report, except one of that name: killed, stopped, or still at work."""
    known = _finished(root)
    runs = [run for run in root.folders("runs") if run != but and run not in known]
    return [run for run, done in zip(runs, each(partial(_has_report, root), runs), strict=True) if not done]


def remember_finished(root: Root) -> None:
    """Keep the names of the runs that are finished now, so that a year of them is not asked for one by one every night.

    Each is asked anew here: a run whose report was removed is unfinished to other runs from the next time on.
    """
    runs = root.folders("runs")
    finished = [run for run, done in zip(runs, each(partial(_has_report, root), runs), strict=True) if done]
    if set(finished) != _finished(root):
        root.write(_FINISHED, json.dumps(finished).encode())


def _has_report(root: Root, run: str) -> bool:
    return root.exists(f"runs/{run}/report.json")


def _finished(root: Root) -> set[str]:
    """As `remember_finished` kept them; none where it did not, or something else lies there."""
    try:
        return {str(name) for name in json.loads(root.read(_FINISHED))}
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, TypeError):
        return set()


def _part(root: Root, wanted: pa.Schema, relative: str) -> pa.Table:
    try:
        part = pap.ParquetFile(pa.BufferReader(root.read(relative)))
    except pa.ArrowInvalid as e:
        log.warning("leaving out the part %s, cut short by a killed run: %s", relative, e)
        return wanted.empty_table()
    known = pa.schema([f for f in wanted if f.name in part.schema_arrow.names])
    return schema.fill(schema.check(part.read(columns=known.names), known, relative), wanted)


def replace(
    root: Root, name: str, parts: Iterable[pa.RecordBatch], base: int | None, metadata: Mapping[str, str]
) -> int:
    """Put `parts`, which may be more than memory holds, in place of all rows of a table in one commit.

    base    the version that this run was planned on; None if there was no table
    raises  PublishConflict if another run has committed after `base`
    """
    if version(root, name) != base:
        raise PublishConflict(
            f"tables/{name} was at version {base} when this run began and another run has committed since"
        )

    def write(commit: CommitProperties) -> None:
        write_deltalake(
            f"{root.uri}/tables/{name}",
            pa.RecordBatchReader.from_batches(TABLES[name], parts),
            mode="overwrite" if base is not None else "error",
            schema_mode="overwrite" if base is not None else None,
            commit_properties=commit,
            storage_options=storage_options(root),
        )

    return commit(root, name, base, metadata, write)


def metadata(root: Root, name: str) -> dict:
    """The metadata of the commit whose rows are live; empty if there is no table."""
    table = open_table(root, name)
    return {} if table is None else _published(table)


def _published(table: DeltaTable) -> dict:
    """The log's entry of the last commit that changed rows, or what later ones keep of it."""
    last = table.history(1)[0]
    if _UPKEEP_OF not in last:
        return last
    return next((e for e in table.history() if _UPKEEP_OF not in e), None) or json.loads(last[_UPKEEP_OF])


class Version(BaseModel):
    """One commit of a table."""

    version: int
    time: datetime
    operation: str
    """Delta's name for it: WRITE, MERGE, RESTORE; OPTIMIZE, SET TBLPROPERTIES and ADD COLUMN change no row"""
    rows_added: int | None
    """with those that replace another row; null where the commit does not record it"""
    rows_removed: int | None
    """with those that were replaced"""
    run_id: str | None = None
    recipe_id: str | None = None
    weights_revision: str | None = None
    git_commit: str | None = None
    rollback_to: int | None = None


def published(root: Root, name: str) -> Version | None:
    """The commit whose rows are live, also where commits that change no row came after it; None if there is no table."""
    table = open_table(root, name)
    return None if table is None else _version(_published(table))


def history(root: Root, name: str) -> list[Version]:
    """The commits of a table, newest first, as far as its log reaches; none if it was never written."""
    table = open_table(root, name)
    return [] if table is None else [_version(entry) for entry in table.history()]


def _version(entry: dict) -> Version:
    counts = {k: int(v) for k, v in entry.get("operationMetrics", {}).items() if str(v).isdigit()}
    counts |= {k: int(entry[k]) for k in ("rows_added", "rows_removed") if k in entry}
    replaced = counts.get("num_target_rows_updated", 0)
    if entry["operation"] == "MERGE":
        counts["rows_added"] = counts["num_target_rows_inserted"] + replaced
        counts["rows_removed"] = counts["num_target_rows_deleted"] + replaced
    elif entry["operation"] == "WRITE" and "rows_added" not in counts:
        fresh = entry.get("operationParameters", {}).get("mode") != "Overwrite"
        counts = {"rows_added": counts.get("num_added_rows")} | ({"rows_removed": 0} if fresh else {})
    return Version(
        version=entry["version"],
        time=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
        operation=entry["operation"],
        rows_added=counts.get("rows_added"),
        rows_removed=counts.get("rows_removed"),
        **{k: entry.get(k) for k in ("run_id", "recipe_id", "weights_revision", "git_commit", "rollback_to")},
    )


def expired(root: Root, name: str, retention: timedelta) -> list[str]:
    """Files that no version needs which was the newest at any time within `retention`; paths relative to the root.

    Files that no commit names yet count as needed while they are younger than `retention`.
    """
    table = open_table(root, name)
    if table is None:
        return []
    since = datetime.now(UTC) - retention
    newest_first = history(root, name)
    superseded = [None, *(v.time for v in newest_first)]
    keep = [v.version for v, end in zip(newest_first, superseded, strict=False) if end is None or end >= since]
    # Delta's own vacuum would put two commits into the log, and a night that runs beside it could not publish any more.
    hours = math.ceil(retention / timedelta(hours=1))
    files = table.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True, keep_versions=keep)
    return [f"tables/{name}/{file}" for file in files]
