"""Back to an earlier version of a table, as a new commit, once all objects that it names are known to exist."""

import logging

import pyarrow as pa
from deltalake.exceptions import DeltaError
from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.storage.vacuum import named

log = logging.getLogger(__name__)


class RolledBack(BaseModel):
    """What a rollback did, or would do."""

    table: str
    rollback_from: int
    rollback_to: int
    version: int | None
    """of the commit; null for a dry run"""
    rows: int
    """live after it"""
    rows_added: int | None
    """against what is live now; null: a data file of that is lost or damaged"""
    rows_removed: int | None
    objects: int
    """named by these rows; all of them exist"""


def rollback(root: Root, table: str, to: int, dry_run: bool = False) -> RolledBack:
    """Make version `to` the live one by one commit; what came after stays in the history.

    raises  ConfigError if there is no such version, its files or objects are gone, or it is what is live;
            PublishConflict if another run commits meanwhile; nothing is changed then
    """
    now = tables.version(root, table)
    if now is None:
        raise ConfigError(f"there is no table {root.uri}/tables/{table}")
    known = {v.version for v in tables.history(root, table)}
    if to not in known:
        raise ConfigError(f"tables/{table} has no version {to}; its history has {min(known)} to {max(known)}")
    files, live = _files(root, table, to), tables.published(root, table)
    if files == _files(root, table, now) or (live and to >= live.version):
        raise ConfigError(f"version {to} of tables/{table} is what is live already, at version {now}")
    if gone := root.missing(f"tables/{table}/{file}" for file in files):
        raise ConfigError(
            f"version {to} of tables/{table} cannot be restored: {len(gone)} of its {len(files)} files are gone "
            f"({gone[0]}); it is past the retention of a vacuum"
        )
    after = tables.read(root, table, version=to)
    objects = named(after)
    if gone := root.missing(objects):
        raise ConfigError(
            f"version {to} of tables/{table} cannot be restored: {len(gone)} of the {len(objects)} objects that it names "
            f"are gone ({gone[0]}); it is past the retention of a vacuum"
        )
    before, rows = _live(root, table), _rows(after)
    done = RolledBack(
        table=table,
        rollback_from=now,
        rollback_to=to,
        version=None,
        rows=after.num_rows,
        rows_added=None if before is None else len(rows - before),
        rows_removed=None if before is None else len(before - rows),
        objects=len(objects),
    )
    if not dry_run:
        keys = ("rollback_from", "rollback_to", "rows_added", "rows_removed")
        metadata = {key: str(value) for key in keys if (value := getattr(done, key)) is not None}
        done.version = tables.restore(root, table, to, now, metadata)
    return done


def _files(root: Root, table: str, version: int) -> set[str]:
    """Names of a version's data files."""
    try:
        opened = tables.open_table(root, table, version)
    except DeltaError as e:
        raise ConfigError(f"version {version} of tables/{table} cannot be read any more: {e}") from e
    return {uri.rsplit("/", 1)[-1] for uri in opened.file_uris()} if opened else set()


def _live(root: Root, table: str) -> set[tuple] | None:
    """The rows that are live; None if they cannot be read, from which a rollback is the way back."""
    try:
        return _rows(tables.read(root, table))
    except (OSError, DeltaError, pa.ArrowException) as e:
        log.warning("what is live in tables/%s cannot be read: %s", table, e)
        return None


def _rows(rows: pa.Table) -> set[tuple]:
    """Rows by their id and what they name; a replaced row is another one."""
    names = [
        name
        for name in (rows.column_names[0], "request_id", "sha256", "fingerprint", "version")
        if name in rows.column_names
    ]
    return set(zip(*(rows[name].to_pylist() for name in names), strict=True))
