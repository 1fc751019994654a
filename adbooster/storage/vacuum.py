"""What nothing needs any more: table files past the retention, objects that no table names, parts of old runs.

A root of any size is swept in bounded memory: names are spilled to the disk by the folder of objects/ that they are in, and
folders are listed and swept a few at a time.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from deltalake.exceptions import DeltaError
from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError, SchemaError, StorageError
from adbooster.contracts.naming import CATALOGS
from adbooster.storage import lock, tables
from adbooster.storage.lock import Claim
from adbooster.storage.objects import FRESH_S, Root, Stat, each

OBJECT = re.compile(r"objects/([0-9a-f]{2})/(?=\1)[0-9a-f]{64}\.\w+")  # as Root.put names them
NAME = r"^objects/[0-9a-f]{2}/[0-9a-f]{64}\.\w+$"
MINIMUM = timedelta(days=1)
CLOCKS_APART_S = 15 * 60  # more than this, and what is young or old cannot be told
ABANDONED = timedelta(days=7)  # an unfinished run that has written nothing for so long is not resumed
LISTS = "vacuum"  # what each vacuum removed
FIRST = 20  # names in the report itself
AT_ONCE = 4  # files that are read, and folders that are listed, at one time: some ten thousand names each
BATCH_ROWS = 65_536
SPILL_KEYS = 1 << 21  # 16 MiB in memory before they go to the disk
EVERY_S = 5.0  # between lines of progress
LOST, DAMAGED = "has data files and no log", "has a log that cannot be read"
BRING_LOG_BACK = "bring its _delta_log back from a copy, or remove the folder if it was never published"

assert MINIMUM.total_seconds() > FRESH_S


class Vacuumed(BaseModel):
    """What was removed, or would be; paths are relative to the root, of its catalogs too."""

    older_than_days: float
    dry_run: bool
    table_files: int = 0
    """Delta data files of versions past the retention, and of commits that never came"""
    staged_parts: int = 0
    """of finished or abandoned runs"""
    objects: int = 0
    size_bytes: int = 0
    """of all of these"""
    objects_kept: int = 0
    refused: int = 0
    """files that the storage does not allow to be removed (a policy, object lock); they are not counted above"""
    first: list[str] = []
    """of the names"""
    listed_in: str | None = None
    """where all names are, one a line, relative to the root; null: nothing was removed"""
    night: str | None = None
    """the night that was running: what it has stored is young and stays"""


class Places(NamedTuple):
    """All that names objects of a root, and what of it is to go; paths relative to the root."""

    naming: list[str]
    """data files that a version within the retention has, and staged parts that stay"""
    expired: dict[str, Stat]
    """data files that no version within the retention has"""
    old_parts: dict[str, Stat]


def vacuum(
    root: Root,
    retention: timedelta,
    dry_run: bool = False,
    force: bool = False,
    tell: Callable[[str], object] = str,
    progress: Callable[[str], object] = str,
) -> Vacuumed:
    """Remove what no version within the retention, no unfinished run and no job that runs now can need.

    Keeps what is younger than `retention`: a running job has stored objects that no table names yet. Memory does not grow
    with the number of objects; the disk of the temporary folder holds 8 bytes a name.
    tell      is given every name that goes, table files first
    progress  is given a line every few seconds
    raises    ConfigError for a retention below MINIMUM without `force`, or while a night runs, for a catalog alone, for a root
              without tables or with a table whose log is lost or damaged, and where the clocks of this machine and of the
              storage are apart
    """
    night = _checked(root, retention, force)
    before, said = time.time() - retention.total_seconds(), Said(progress)
    done = Vacuumed(older_than_days=retention.total_seconds() / 86400, dry_run=dry_run, night=night and night.run_id)
    with tempfile.TemporaryDirectory(prefix="adbooster-vacuum-") as scratch:
        listing = _Listing(root, scratch, tell)
        found = places(root, retention)
        names = spilled(root, found.naming, scratch, said)
        # First the tables' files: a version that loses objects below cannot be restored any more.
        gone = found.expired | found.old_parts
        refused = set() if dry_run else set(root.remove(gone))
        done.table_files, done.staged_parts = (
            len(files.keys() - refused) for files in (found.expired, found.old_parts)
        )
        done.size_bytes, done.refused = _size(gone, refused), len(refused)
        for files in (found.expired, found.old_parts):
            listing.add(files.keys() - refused)
        folders = object_folders(root)
        for n, swept in enumerate(some_at_once(partial(_sweep, root, names, before, dry_run), folders), 1):
            listing.add(swept.gone)
            done.objects, done.objects_kept = done.objects + len(swept.gone), done.objects_kept + swept.kept
            done.size_bytes, done.refused = done.size_bytes + _size(swept.gone), done.refused + swept.refused
            would = "would go" if dry_run else "are removed"
            said(f"{n} of {len(folders)} folders: {done.objects:,} objects {would}, {done.objects_kept:,} stay")
        done.first = listing.first
        if not dry_run:
            done.listed_in = listing.keep()
    return done


def _checked(root: Root, retention: timedelta, force: bool) -> Claim | None:
    """The night that runs, if one does; raises as `vacuum`."""
    if retention < MINIMUM and not force:
        raise ConfigError(
            f"--older-than {retention.total_seconds() / 86400:g} days is below the minimum of {MINIMUM.days} day, within "
            "which jobs that run now have stored objects that no table names yet; add --force if no job is running"
        )
    if root.above is not None:
        raise ConfigError(
            f"{root.uri} is a catalog, whose objects others may name too; vacuum {root.above.uri}, which covers all catalogs"
        )
    by_way = holders_of(root)
    holders = by_way.values()
    if wrong := [
        f"{at}tables/{name} {why}" for at, holder in by_way.items() for name, why in unreadable(holder).items()
    ]:
        raise ConfigError(f"{wrong[0]}, so that the objects it names are not known; {BRING_LOG_BACK}")
    if not any(tables.present(holder) for holder in holders):
        raise ConfigError(f"there are no tables below {root.uri}")
    if abs(apart := root.now() - time.time()) > CLOCKS_APART_S:
        raise ConfigError(
            f"the clock of {root.uri} is {apart / 60:+.0f} minutes off this machine's, so that what is young or old cannot "
            "be told; set this clock (NTP) and run again"
        )
    night = next((claim for holder in holders if (claim := lock.running(holder))), None)
    if night and retention < MINIMUM:
        raise ConfigError(
            f"night {night.run_id} runs below {root.uri} and has stored objects that no table names yet; wait for its end, "
            f"or give --older-than {MINIMUM.days}d or more"
        )
    return night


def places(root: Root, retention: timedelta) -> Places:
    """Every place that names objects of this root, in itself and its catalogs, and what of these is older than the retention.

    An object that none of them names, and that is not young, is needed by nothing: whatever keeps names of objects has to be
    here.
    """
    found = Places([], {}, {})
    for at, holder in holders_of(root).items():
        own = _places(holder, retention)
        found.naming.extend(at + file for file in own.naming)
        for files, more in ((found.expired, own.expired), (found.old_parts, own.old_parts)):
            files.update({at + file: stat for file, stat in more.items()})
    return found


def _places(root: Root, retention: timedelta) -> Places:
    """Of a root or a catalog alone, paths relative to it."""
    before = time.time() - retention.total_seconds()
    data: dict[str, Stat] = {}
    expired: set[str] = set()
    for name in tables.present(root):
        expired.update(tables.expired(root, name, retention))
        # Listed after the log was read: files of a commit that comes between name what they name.
        data |= {path: stat for path, stat in root.stats(f"tables/{name}").items() if _is_data(path)}
    expired &= data.keys()  # Delta names those again that an earlier vacuum removed
    parts: list[str] = []
    old: dict[str, Stat] = {}
    for staged, stale in each(partial(_parts, root, before), root.folders("runs"), AT_ONCE):
        parts += staged
        old |= stale
    naming = sorted((data.keys() - expired) | (set(parts) - old.keys()))
    return Places(naming, {file: data[file] for file in expired}, old)


def object_folders(root: Root) -> list[str]:
    return [f"objects/{name}" for name in root.folders("objects") if re.fullmatch("[0-9a-f]{2}", name)]


def holders_of(root: Root) -> dict[str, Root]:
    """All whose tables and runs name objects of a root, itself and its catalogs, by the way from it to their folders."""
    return {"": root} | {f"{CATALOGS}/{catalog.catalog}/": catalog for catalog in root.catalogs()}


def unreadable(root: Root) -> dict[str, str]:
    """Tables of a root or a catalog alone whose log is lost or cannot be read, and which of these it is.

    LOST also where the first commit never came.
    """
    return {name: why for name in root.folders("tables") if (why := _unreadable(root, name))}


def _unreadable(root: Root, name: str) -> str | None:
    try:
        lost = tables.open_table(root, name) is None and any(map(_is_data, root.stats(f"tables/{name}")))
    except DeltaError:
        return DAMAGED
    return LOST if lost else None


def _is_data(path: str) -> bool:
    return path.endswith(".parquet") and "/_" not in path


class Names:
    """A set of names of objects, larger than memory: 8 bytes of each one's SHA-256, in one file a folder of objects/.

    Two names whose 8 bytes are equal are taken for one: an object stays that could go, never the other way round.
    """

    def __init__(self, scratch: str):
        self.scratch, self.lock = Path(scratch), Lock()
        self.waiting: list[np.ndarray] = []
        self.full_at = dict.fromkeys(range(256), SPILL_KEYS)  # keys in a file at which doubles are taken out

    def add(self, uris: pa.Array) -> None:
        """Names among any texts; others are left out."""
        with self.lock:
            self.waiting.append(keys(pc.unique(uris)))
            if sum(map(len, self.waiting)) >= SPILL_KEYS:
                self._spill()

    def of(self, folder: str) -> np.ndarray:
        """Keys of the names in one folder `objects/ab`, uint64, sorted."""
        with self.lock:
            self._spill()
        file = self._file(int(folder[-2:], 16))
        return np.unique(np.fromfile(file, np.uint64)) if file.exists() else np.empty(0, np.uint64)

    def _spill(self) -> None:
        found, self.waiting = np.unique(np.concatenate([np.empty(0, np.uint64), *self.waiting])), []
        ends = np.searchsorted(found, np.arange(1, 256, dtype=np.uint64) << np.uint64(56))
        for number, part in enumerate(np.split(found, ends)):
            if len(part):
                self._append(number, part)

    def _append(self, number: int, part: np.ndarray) -> None:
        file = self._file(number)
        with file.open("ab") as opened:
            part.tofile(opened)
        if file.stat().st_size // 8 > self.full_at[number]:
            once = np.unique(np.fromfile(file, np.uint64))
            once.tofile(file)
            self.full_at[number] = max(SPILL_KEYS, 2 * len(once))

    def _file(self, number: int) -> Path:
        return self.scratch / f"{number:02x}.names"


def keys(uris: pa.Array) -> np.ndarray:
    """The first 8 bytes of the SHA-256 in each name of an object, uint64; texts that are none are left out."""
    found = uris.cast(pa.large_string())
    found = found.filter(pc.match_substring_regex(found, NAME))
    digits = "".join(pc.utf8_slice_codeunits(found, 11, 27).to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


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


def spilled(root: Root, naming: list[str], scratch: str, said: Callable[[str], object]) -> Names:
    """The objects that these files name."""
    names = Names(scratch)
    for n, _ in enumerate(some_at_once(partial(_spill, root, names), naming), 1):
        said(f"the names in {n:,} of {len(naming):,} files are read")
    return names


def _spill(root: Root, names: Names, file: str) -> None:
    """Add the objects that a data file or a staged part names; a part that a killed run left cut short names none."""
    with root.fs.open(root.path(file), "rb") as opened:
        try:
            parquet = pap.ParquetFile(opened)
        except pa.ArrowInvalid as e:
            if "/staged/" in file:
                return
            raise StorageError(f"{file} cannot be read, so that which objects it names is not known: {e}") from e
        wanted = [f.name for f in parquet.schema_arrow if _uris(f.name, pa.array([], f.type))]
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted) if wanted else ():
            for name in batch.schema.names:
                for values in _uris(name, batch.column(name)):
                    names.add(values)


def _parts(root: Root, before: float, run: str) -> tuple[list[str], dict[str, Stat]]:
    """A run's staged parts; with all else that it staged if it was finished or abandoned before a time."""
    files = root.stats(f"runs/{run}")
    staged = {f: s for f, s in files.items() if f.startswith(f"runs/{run}/staged/")}
    finished = f"runs/{run}/report.json" in files
    last = before if finished else min(before, time.time() - ABANDONED.total_seconds())
    old = staged if staged and max(stat.modified for stat in files.values()) <= last else {}
    return [f for f in staged if f.endswith(".parquet")], old


class _Swept(NamedTuple):
    gone: dict[str, Stat]
    kept: int
    refused: int
    """of those that stay"""


def _sweep(root: Root, names: Names, before: float, dry_run: bool, folder: str) -> _Swept:
    """Remove a folder's old objects that nothing names. Files of others stay.

    The folder is listed now: what a job put again since the tables were read is young again.
    """
    stored = {file: stat for file, stat in root.stats(folder).items() if OBJECT.fullmatch(file)}
    unnamed = ~np.isin(keys(pa.array(list(stored), pa.large_string())), names.of(folder))
    gone = {file: stat for (file, stat), out in zip(stored.items(), unnamed, strict=True) if out}
    gone = {file: stat for file, stat in gone.items() if stat.modified <= before}
    refused = set() if dry_run else set(root.remove(gone))
    gone = {file: stat for file, stat in gone.items() if file not in refused}
    return _Swept(gone, len(stored) - len(gone), len(refused))


def some_at_once(do: Callable, items: Iterable) -> Iterator:
    """`do` of every item, AT_ONCE at a time, in their order; each result as soon as it is there."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield from threads.map(do, items)


def _size(files: dict[str, Stat], but: Set[str] = frozenset()) -> int:
    return sum(stat.size_bytes for file, stat in files.items() if file not in but)


class _Listing:
    """Every name that goes: to `tell`, the first ones to the report, and all to a file below the root."""

    def __init__(self, root: Root, scratch: str, tell: Callable[[str], object]):
        self.root, self.file, self.tell = root, Path(scratch) / "listing", tell
        self.first: list[str] = []

    def add(self, names: Iterable[str]) -> None:
        ordered = sorted(names)
        self.first += ordered[: FIRST - len(self.first)]
        with self.file.open("a") as opened:
            opened.writelines(f"{name}\n" for name in ordered)
        for name in ordered:
            self.tell(name)

    def keep(self) -> str | None:
        """The name of the file, which is stored now; None if it would be empty."""
        if not self.first:
            return None
        name = f"{LISTS}/{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
        self.root.put_file(self.file, name)
        return name


class Said:
    """Lines of progress, not more often than people read them."""

    def __init__(self, progress: Callable[[str], object]):
        self.progress, self.at = progress, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self.at >= EVERY_S:
            self.at = time.monotonic()
            self.progress(line)
