"""What nothing needs any more: table files past the retention, objects that no table names, parts of old runs."""

import re
import time
from collections import defaultdict
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError, SchemaError
from adbooster.contracts.naming import CATALOGS
from adbooster.storage import tables
from adbooster.storage.objects import FRESH_S, Root, Stat, each

_OBJECT = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{64}\.\w+")  # as Root.put names them
MINIMUM = timedelta(days=1)
CLOCKS_APART_S = 15 * 60  # more than this, and what is young or old cannot be told
ABANDONED = timedelta(days=7)  # an unfinished run that has written nothing for so long is not resumed

assert MINIMUM.total_seconds() > FRESH_S


class Vacuumed(BaseModel):
    """What was removed, or would be; paths are relative to the root, of its catalogs too."""

    older_than_days: float
    dry_run: bool
    table_files: list[str]
    """Delta data files of versions past the retention, and of commits that never came"""
    staged_parts: list[str]
    """of finished or abandoned runs"""
    objects: list[str]
    size_bytes: int
    """of all of these"""
    objects_kept: int
    refused: int
    """files that the storage does not allow to be removed (a policy, object lock); they are not listed above"""


def vacuum(root: Root, retention: timedelta, dry_run: bool = False, force: bool = False) -> Vacuumed:
    """Remove what no version within the retention, no unfinished run and no job that runs now can need.

    Keeps what is younger than `retention`: a running job has stored objects that no table names yet. Memory: about 200
    bytes an object that a table names.
    raises  ConfigError for a retention below MINIMUM without `force`, for a catalog alone, for a root without tables, and
            where the clocks of this machine and of the storage are apart
    """
    if retention < MINIMUM and not force:
        raise ConfigError(
            f"--older-than {retention.total_seconds() / 86400:g} days is below the minimum of {MINIMUM.days} day, within "
            "which jobs that run now have stored objects that no table names yet; add --force if no job is running"
        )
    if root.above is not None:
        raise ConfigError(
            f"{root.uri} is a catalog, whose objects others may name too; vacuum {root.above.uri}, which covers all catalogs"
        )
    holders = holders_of(root)
    found = [
        (at, holder, name)
        for at, holder in holders.items()
        for name in holder.folders("tables")
        if tables.open_table(holder, name) is not None
    ]
    if not found:
        raise ConfigError(f"there are no tables below {root.uri}")
    if abs(apart := root.now() - time.time()) > CLOCKS_APART_S:
        raise ConfigError(
            f"the clock of {root.uri} is {apart / 60:+.0f} minutes off this machine's, so that what is young or old cannot "
            "be told; set this clock (NTP) and run again"
        )
    before = time.time() - retention.total_seconds()
    expired = {at + file for at, holder, name in found for file in tables.expired(holder, name, retention)}
    data = {
        at + path: stat
        for at, holder, name in found
        for path, stat in holder.stats(f"tables/{name}").items()
        if _is_data(path)
    }
    table_files = expired & set(data)  # Delta names those again that an earlier vacuum removed
    parts, old_parts = {}, {}
    for at, holder in holders.items():
        some, old = _parts(holder, before)
        parts |= {at + file: stat for file, stat in some.items()}
        old_parts |= {at + file: stat for file, stat in old.items()}
    live = set(data).difference(table_files).union(parts).difference(old_parts)
    named = set().union(*each(lambda file: _named_in(root, file), sorted(live)))
    gone: dict[str, Stat] = {file: data[file] for file in table_files} | old_parts
    # First the tables' files: a version that loses objects below cannot be restored any more.
    refused = set() if dry_run else set(root.remove(gone))
    swept = each(lambda folder: _sweep(root, folder, named, before, dry_run), _folders(root))
    objects = {file: stat for some, _, _ in swept for file, stat in some.items()}
    return Vacuumed(
        older_than_days=retention.total_seconds() / 86400,
        dry_run=dry_run,
        table_files=sorted(table_files - refused),
        staged_parts=sorted(set(old_parts) - refused),
        objects=sorted(objects),
        size_bytes=sum(stat.size_bytes for file, stat in (gone | objects).items() if file not in refused),
        objects_kept=sum(kept for _, kept, _ in swept),
        refused=len(refused) + sum(stuck for _, _, stuck in swept),
    )


def holders_of(root: Root) -> dict[str, Root]:
    """All whose tables and runs name objects of a root, itself and its catalogs, by the way from it to their folders."""
    return {"": root} | {f"{CATALOGS}/{catalog.catalog}/": catalog for catalog in root.catalogs()}


def _is_data(path: str) -> bool:
    return path.endswith(".parquet") and "/_" not in path


def named(rows: pa.Table) -> set[str]:
    """The objects that rows name, in columns and fields called `uri`, `..._uri` or `..._uris`."""
    objects: set[str] = set()
    for name in rows.column_names:
        for chunk in rows[name].chunks:
            for values in _uris(name, chunk):
                objects.update(v for v in pc.unique(values).to_pylist() if v and v.startswith("objects/"))
    return objects


def _uris(name: str, values: pa.Array) -> list[pa.Array]:
    """The arrays of uris in a column; Delta and Parquet writers choose among many types for the same values.

    raises SchemaError for a type that this does not know: an object overlooked here would be removed
    """
    kind = values.type
    if pa.types.is_struct(kind):
        return [a for field, child in zip(kind, values.flatten(), strict=True) for a in _uris(field.name, child)]
    if "list" in str(kind).split("<")[0]:  # list, large_list, list_view, fixed_size_list...
        return _uris(name, values.flatten())
    if pa.types.is_nested(kind):
        raise SchemaError(f"vacuum cannot look for objects in a column {name!r} of {kind}")
    return [values.cast(pa.large_string())] if name.endswith(("uri", "uris")) else []


def _named_in(root: Root, file: str) -> set[str]:
    """The objects that a data file or a staged part names; a part that a killed run left cut short names none."""
    with root.fs.open(root.path(file), "rb") as opened:
        try:
            parquet = pap.ParquetFile(opened)
        except pa.ArrowInvalid:
            if "/staged/" in file:
                return set()
            raise
        wanted = [f.name for f in parquet.schema_arrow if _uris(f.name, pa.array([], f.type))]
        return named(parquet.read(columns=wanted)) if wanted else set()


def _parts(root: Root, before: float) -> tuple[dict[str, Stat], dict[str, Stat]]:
    """All staged parts, and those of runs that were finished or abandoned before a time."""
    runs: dict[str, dict[str, Stat]] = defaultdict(dict)
    for file, stat in root.stats("runs").items():
        runs[file.split("/")[1]][file] = stat
    parts, old = {}, {}
    for run, files in runs.items():
        staged = {f: s for f, s in files.items() if f.startswith(f"runs/{run}/staged/")}
        finished = f"runs/{run}/report.json" in files
        last = before if finished else min(before, time.time() - ABANDONED.total_seconds())
        parts |= {f: s for f, s in staged.items() if f.endswith(".parquet")}
        if max(stat.modified for stat in files.values()) <= last:
            old |= staged
    return parts, old


def _folders(root: Root) -> list[str]:
    return [f"objects/{name}" for name in root.folders("objects")]


def _sweep(root: Root, folder: str, named: set[str], before: float, dry_run: bool) -> tuple[dict[str, Stat], int, int]:
    """Remove a folder's old objects that nothing names; returns them, how many stay, and of these how many are refused.
    Files of others stay.

    The folder is listed now: what a job put again since the tables were read is young again.
    """
    stored = {file: stat for file, stat in root.stats(folder).items() if _OBJECT.fullmatch(file)}
    gone = {file: stat for file, stat in stored.items() if file not in named and stat.modified <= before}
    refused = set() if dry_run else set(root.remove(gone))
    gone = {file: stat for file, stat in gone.items() if file not in refused}
    return gone, len(stored) - len(gone), len(refused)
