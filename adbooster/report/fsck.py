"""Whether a root is whole: every live row's objects, their content, the proofs, and the tables' own files: `adbooster fsck`.

Reads everything in parts, so that a root of any size is checked in bounded memory; what is wrong is kept in memory.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.contracts.errors import ConfigError, StorageError
from adbooster.report.repair import Checked, Found, called, mend
from adbooster.storage import lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root, Stat, each
from adbooster.storage.vacuum import (
    BRING_LOG_BACK,
    DAMAGED,
    MINIMUM,
    NAME,
    OBJECT,
    Names,
    Said,
    holders_of,
    keys,
    object_folders,
    places,
    some_at_once,
    spilled,
    unreadable,
)

EVER = timedelta(days=36_500)  # every version that is left
READERS = 8
VERSIONS = 50  # that are looked at for one to go back to
NAMING = {  # tables whose live rows name objects: id, columns with names, column with the size of the first of them
    "samples": ("sample_id", ("photo_uri", "mask_uri"), None),
    "creatives": ("creative_id", ("uri",), "size_bytes"),
    "deliveries": ("delivery_id", ("uri", "extended_uri"), "size_bytes"),
}


class _Sizes:
    """Objects that live rows name, with the sizes that rows tell (0: none), spilled by folder: 16 bytes a name."""

    def __init__(self, scratch: str):
        self.scratch, self.lock = Path(scratch), Lock()

    def add(self, uris: pa.Array, sizes: pa.Array | None) -> None:
        ours = pc.fill_null(pc.match_substring_regex(uris, NAME), False)
        found = np.zeros((pc.sum(ours).as_py() or 0, 2), np.uint64)
        found[:, 0] = keys(uris.filter(ours))
        if sizes is not None:
            found[:, 1] = pc.fill_null(sizes.filter(ours), 0).to_numpy(zero_copy_only=False)
        found = found[np.argsort(found[:, 0])]
        ends = np.searchsorted(found[:, 0], np.arange(1, 256, dtype=np.uint64) << np.uint64(56))
        with self.lock:
            for number, part in enumerate(np.split(found, ends)):
                if len(part):
                    with (self.scratch / f"{number:02x}.sizes").open("ab") as opened:
                        part.tofile(opened)

    def folders(self) -> list[str]:
        return [f"objects/{file.stem}" for file in self.scratch.glob("*.sizes")]

    def of(self, folder: str) -> np.ndarray:
        """uint64 [N, 2]: key and size"""
        file = self.scratch / f"{folder[-2:]}.sizes"
        return np.fromfile(file, np.uint64).reshape(-1, 2) if file.exists() else np.empty((0, 2), np.uint64)


class _Folder(NamedTuple):
    """What is wrong in one folder of objects/."""

    objects: int
    hashed: int
    unnamed: int
    young: int
    lost: np.ndarray
    wrong_size: np.ndarray
    wrong_content: np.ndarray
    damaged: list[str]
    """files whose content is not their name's"""


def fsck(root: Root, sample: float = 0.01, repair: bool = False, progress: Callable[[str], object] = str) -> Checked:
    """Check a root, and with `repair` mend what a night can make again, under the night's lock.

    sample  share of the objects whose content is read, the same ones each time; 1: all
    raises  ConfigError for a root without tables of its own; LockHeld where it is to repair and a night runs;
            PublishConflict if a job without the lock commits meanwhile
    """
    catalogs = [one.catalog for one in root.catalogs()] if root.above is None else []
    if not root.folders("tables"):
        if catalogs:
            raise ConfigError(f"{root.uri} holds only catalogs; run with --catalog NAME for: {', '.join(catalogs)}")
        raise ConfigError(f"there are no tables below {root.uri}")
    started, report = time.monotonic(), Checked(sample=sample, unchecked=catalogs)
    run_id = f"fsck-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    found = Found(report)
    with (
        tempfile.TemporaryDirectory(prefix="adbooster-fsck-") as scratch,
        NightLock(root, run_id) if repair and not lock.held(root) else nullcontext(),
    ):
        versions = {name: tables.version(root, name) for name in NAMING if _sound(root, name, found)}
        for name in sorted(set(root.folders("tables")) - NAMING.keys()):
            _sound(root, name, found)
        _logs(root, found)
        whole = not found.problems
        sizes = _named_by_live_rows(root, versions, scratch, report)
        named = _named_by_any_version(root, scratch, found, Said(progress)) if whole else None
        bad = _objects(root, sizes, named, report, found, Said(progress))
        found.elsewhere = _elsewhere(root, found.damaged)
        _rows(root, versions, bad, found)
        if repair:
            mend(root, versions, found, run_id)
    report.problems = dict(found.problems)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _sound(root: Root, name: str, found: Found) -> bool:
    """Whether a table opens and every data file of its live version is there, whole and readable."""
    try:
        table = tables.open_table(root, name)
        if table is None:
            return False
        facts = pa.table(table.get_add_actions()).select(["path", "size_bytes", "num_records"]).to_pylist()
    except Exception as e:  # a log can be damaged in any way
        found.add("table_unreadable", table=name, says=f"{type(e).__name__}: {e}"[:300])
        found.report.left.append(f"tables/{name} cannot be opened; bring back its _delta_log from a copy")
        return False
    stored = root.stats(f"tables/{name}")
    wrong = [
        (f["path"], why)
        for f, why in zip(facts, each(partial(_file, root, name, stored), facts, READERS), strict=True)
        if why
    ]
    for path, why in wrong:
        found.add("data_file", table=name, file=f"tables/{name}/{path}", says=why)
    if wrong:
        gone = {path for path, _ in wrong}
        back = _restorable(root, name, gone, stored)
        what = (
            f"adbooster rollback --table {name} --to {back}" if back is not None else "bring the files back from a copy"
        )
        found.report.left.append(f"tables/{name} lacks {len(wrong)} of its {len(facts)} data files: {what}")
    return not wrong


def _logs(root: Root, found: Found) -> None:
    """Tables without a log that can be read, of all that shares the objects; but for what `_sound` has told."""
    for at, holder in holders_of(root.above or root).items():
        for name, why in unreadable(holder).items():
            if holder.uri == root.uri and why == DAMAGED:
                continue
            path = f"{at}tables/{name}"
            found.add("table_unreadable", table=name, file=path, says=f"it {why}")
            found.report.left.append(f"{path} {why}; {BRING_LOG_BACK}")


def _file(root: Root, name: str, stored: dict[str, Stat], fact: dict) -> str | None:
    """What is wrong with a data file."""
    path = f"tables/{name}/{fact['path']}"
    if path not in stored:
        return "it is not stored"
    if stored[path].size_bytes != fact["size_bytes"]:
        return f"it has {stored[path].size_bytes} bytes, the log says {fact['size_bytes']}"
    try:
        with root.fs.open(root.path(path), "rb") as opened:
            rows = pap.ParquetFile(opened).metadata.num_rows
    except (OSError, pa.ArrowException) as e:
        return f"it cannot be read: {e}"[:300]
    if fact["num_records"] not in (None, rows):
        return f"it has {rows} rows, the log says {fact['num_records']}"
    return None


def _restorable(root: Root, name: str, gone: set[str], stored: dict[str, Stat]) -> int | None:
    """The newest version whose data files are all there."""
    for entry in tables.history(root, name)[:VERSIONS]:
        table = tables.open_table(root, name, entry.version)
        files = {uri.rsplit("/", 1)[-1] for uri in table.file_uris()} if table else gone
        if not files & gone and all(f"tables/{name}/{file}" in stored for file in files):
            return entry.version
    return None


def _named_by_live_rows(root: Root, versions: dict[str, int | None], scratch: str, report: Checked) -> _Sizes:
    sizes = _Sizes(scratch)
    for name, version in versions.items():
        report.rows[name] = 0
        for part in _parts(root, name, version):
            report.rows[name] += part.num_rows
            _, columns, size = NAMING[name]
            for column in columns:
                told = part[size].combine_chunks() if size and column == columns[0] else None
                sizes.add(part[column].combine_chunks(), told)
    return sizes


def _named_by_any_version(root: Root, scratch: str, found: Found, said: Callable[[str], object]) -> Names | None:
    """By all that shares the objects; None if a file cannot be read."""
    try:
        whole = root.above or root
        return spilled(whole, places(whole, EVER).naming, scratch, said)
    except StorageError as e:
        found.add("old_data_file", says=str(e))
        found.report.left.append("remove the data file by hand, or bring it back from a copy; a vacuum stops at it")
    return None


def _parts(root: Root, name: str, version: int | None) -> Iterator[pa.Table]:
    key, columns, size = NAMING[name]
    more = {
        "creatives": ["request_id", "product_id", "photo_sha256", "gates"],
        "samples": ["product_id", "retired_at"],
    }.get(name, [])
    return tables.batches(root, name, [key, *columns, *([size] if size else []), *more], version)


def _photos(creatives: pa.Table) -> pa.Array:
    """Names of the photos that creatives show."""
    sha256 = creatives["photo_sha256"].combine_chunks()
    name = pc.binary_join_element_wise("objects", pc.utf8_slice_codeunits(sha256, 0, 2), sha256, "/")
    return pc.binary_join_element_wise(name, "photo", ".")


def _objects(
    root: Root, sizes: _Sizes, named: Names | None, report: Checked, found: Found, said: Callable[[str], object]
) -> dict[str, np.ndarray]:
    """Keys of the objects that are wrong, by problem."""
    bad: dict[str, list[np.ndarray]] = {"lost": [], "wrong_size": [], "wrong_content": []}
    folders = sorted({*object_folders(root), *sizes.folders()})
    check = partial(_folder, root, sizes, named, report.sample)
    for n, one in enumerate(some_at_once(check, folders), 1):
        report.objects, report.hashed = report.objects + one.objects, report.hashed + one.hashed
        if named is not None:
            report.unnamed, report.young = (report.unnamed or 0) + one.unnamed, (report.young or 0) + one.young
        for problem, parts in bad.items():
            parts.append(getattr(one, problem))
        found.damaged += one.damaged
        said(f"{n} of {len(folders)} folders: {report.objects:,} objects, {report.hashed:,} of them read")
    if named is None:
        report.unnamed = report.young = None
    return {problem: np.concatenate([np.empty(0, np.uint64), *parts]) for problem, parts in bad.items()}


def _folder(root: Root, sizes: _Sizes, named: Names | None, share: float, folder: str) -> _Folder:
    stored = {file: stat for file, stat in root.stats(folder).items() if OBJECT.fullmatch(file)}
    files = list(stored)
    mine = keys(pa.array(files, pa.large_string()))
    size = np.array([stat.size_bytes for stat in stored.values()], np.uint64)
    wanted = sizes.of(folder)
    lost = np.setdiff1d(wanted[:, 0], mine)
    order = np.argsort(mine)
    told = wanted[(wanted[:, 1] > 0) & ~np.isin(wanted[:, 0], lost)]
    actual = size[order][np.searchsorted(mine[order], told[:, 0])] if len(told) else told[:, 1]
    wrong_size = np.unique(told[:, 0][actual != told[:, 1]])
    suspect = np.isin(mine, wrong_size)
    read = [i for i, file in enumerate(files) if suspect[i] or _sampled(file, share)]
    damaged = [
        i for i, holds in zip(read, each(lambda i: _holds(root, files[i]), read, READERS), strict=True) if not holds
    ]
    unnamed = np.zeros(len(files), bool) if named is None else ~np.isin(mine, named.of(folder))
    young = np.array([stat.modified > time.time() - MINIMUM.total_seconds() for stat in stored.values()], bool)
    return _Folder(
        objects=len(files),
        hashed=len(read),
        unnamed=int((unnamed & ~young).sum()),
        young=int((unnamed & young).sum()),
        lost=lost,
        wrong_size=wrong_size,
        wrong_content=np.setdiff1d(mine[damaged], wrong_size),
        damaged=[files[i] for i in damaged],
    )


def _sampled(file: str, share: float) -> bool:
    """Whether an object is in the share, by its own hash: the same ones each time."""
    return int(file.split(".")[0][-8:], 16) < share * 2**32


def _holds(root: Root, file: str) -> bool:
    try:
        return hashlib.sha256(root.read(file)).hexdigest() == file.rsplit("/", 1)[-1].split(".")[0]
    except FileNotFoundError:  # removed since it was listed
        return True


def _elsewhere(root: Root, damaged: list[str]) -> dict[str, str]:
    """Of the damaged files, those that live rows of another catalog, or of the root, name or may name: with its name."""
    files = {_key(file): file for file in damaged}
    wanted, found = np.array(list(files), np.uint64), {}
    others = [one for one in holders_of(root.above or root).values() if one.uri != root.uri] if damaged else []
    for other in others:
        try:
            named = set(files) if unreadable(other) else _naming(other, wanted)
        except Exception:  # a table can be damaged in any way; what it names is not known then
            named = set(files)
        found.update({files[key]: other.catalog for key in named})
    return found


def _naming(root: Root, wanted: np.ndarray) -> set[int]:
    """The keys among these that live rows name."""
    found: set[int] = set()
    for name, (_, columns, _) in NAMING.items():
        for part in _parts(root, name, None):
            for column in columns:
                mine = keys(part[column].combine_chunks())
                found.update(mine[np.isin(mine, wanted)].tolist())
    return found


def _rows(root: Root, versions: dict[str, int | None], bad: dict[str, np.ndarray], found: Found) -> None:
    """Live rows that name an object that is wrong, and creatives whose proof does not hold."""
    products: pa.Array | None = None
    gone, damaged = np.empty(0, np.uint64), np.array([_key(file) for file in found.damaged], np.uint64)
    if "samples" in versions:
        with_mask: list[pa.ChunkedArray] = []
        photos = [gone]
        for part in _parts(root, "samples", versions["samples"]):
            with_mask.append(part.filter(pc.is_valid(part["mask_uri"]))["product_id"])
            mine = keys(part.filter(pc.is_null(part["retired_at"]))["photo_uri"].combine_chunks())
            photos.append(mine[np.isin(mine, bad["lost"])])
        products = pc.unique(pa.chunked_array([c for part in with_mask for c in part.chunks], pa.string()))
        gone = np.concatenate(photos)
    seen: set[int] = set()
    shown: set[int] = set()
    for name, version in versions.items():
        for part in _parts(root, name, version):
            for column in NAMING[name][1]:
                _name_wrong(part, name, column, bad, found, seen)
            if name == "creatives":
                _proofs(part, products, gone, found)
                show = keys(_photos(part))
                shown.update(show[np.isin(show, damaged)].tolist())
    for file in found.damaged:
        if _key(file) in seen:
            continue
        says = (
            "live creatives show this photo and no sample names it" if _key(file) in shown else "no live row names it"
        )
        if file in found.elsewhere:
            says = f"live rows of {called(found.elsewhere[file])} name it, or cannot be read"
        found.add("wrong_content", file=file, says=says)


def _key(file: str) -> int:
    """As `keys` gives it."""
    return int(file.split("/")[-1][:16], 16)


def _name_wrong(
    part: pa.Table, name: str, column: str, bad: dict[str, np.ndarray], found: Found, seen: set[int]
) -> None:
    uris = part[column].combine_chunks()
    ours = pc.fill_null(pc.match_substring_regex(uris, NAME), False)
    rows, mine = part.filter(ours), keys(uris.filter(ours))
    for problem, wrong in bad.items():
        hit = np.isin(mine, wrong)
        seen.update(mine[hit].tolist())
        for row in rows.filter(pa.array(hit)).to_pylist():
            key = row[NAMING[name][0]]
            found.add(problem, table=name, row=key, file=row[column])
            if name == "creatives":
                found.requests.add(row["request_id"])
            elif name == "samples":
                found.samples.setdefault(key, set()).add(column)
            else:
                found.rows[name].add(key)


def _proofs(part: pa.Table, products: pa.Array | None, lost: np.ndarray, found: Found) -> None:
    """`lost`: keys of the photos of live samples that are not stored."""
    gates = part["gates"].combine_chunks()
    difference, psnr = (pc.struct_field(gates, name) for name in ("product_max_diff", "psnr_db"))
    altered = pc.and_(pc.is_null(psnr), pc.greater(pc.fill_null(difference, 0), 0))
    for row in part.filter(altered).to_pylist():
        difference = row["gates"]["product_max_diff"]
        found.add("product_altered", table="creatives", row=row["creative_id"], says=f"product_max_diff {difference}")
        found.requests.add(row["request_id"])
    photos = _photos(part)
    ours = pc.fill_null(pc.match_substring_regex(photos, NAME), False)
    gone = np.zeros(part.num_rows, bool)
    gone[np.flatnonzero(ours.to_numpy(zero_copy_only=False))] = np.isin(keys(photos.filter(ours)), lost)
    if products is not None:
        gone |= ~pc.is_in(part["product_id"], products).to_numpy()
    for row in part.filter(pa.array(gone)).to_pylist():
        found.add("no_photo_or_mask", table="creatives", row=row["creative_id"], says=f"product {row['product_id']}")
