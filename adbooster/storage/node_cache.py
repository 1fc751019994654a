"""Models on a node: each copied once for all actors, checked, kept within bounds.

`$ADBOOSTER_CACHE` (default: a folder of the user's below the temporary folder) holds a folder a model version, of at most
`$ADBOOSTER_CACHE_GIB` together (default 200): the longest unused go first, never what was used within a day.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock
from fsspec import AbstractFileSystem

from adbooster.contracts.errors import ConfigError
from adbooster.storage.outage import room

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"  # beside the files of a pulled model: {"files": {name: {"sha256", "size_bytes"}}, ...}
IN_USE_S = 24 * 3600


def copied(fs: AbstractFileSystem, path: str, uri: str) -> Path:
    """A local copy of the file or folder at `path` of a storage, complete and equal to its manifest.

    One process of a node copies, the others wait. A damaged copy is made again.
    raises  ConfigError if the files in the storage differ from the manifest; StorageError if this node's disk is full
    """
    found = fs.find(path, detail=True)
    listing = {name: (i["size"], str(i.get("ETag"))) for name, i in found.items()}
    manifest = _manifest(fs, path)
    # The name follows from the files as they are now: a model replaced in place is another model.
    mark = hashlib.sha256(json.dumps([uri, listing], sort_keys=True).encode()).hexdigest()[:16]
    folder = _folder()
    target = folder / f"{mark}-{path.rsplit('/', 1)[-1]}"
    with FileLock(folder / f"{mark}.lock"):
        if target.exists() and (wrong := _wrong(target, manifest, path)):
            log.warning("the copy of %s on this node was damaged: %s; copying it again", uri, wrong)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        if not target.exists():
            size_bytes = sum(int(i["size"] or 0) for i in found.values())
            with room(
                f"this node's model cache {folder} ({size_bytes / 2**30:.2f} GiB for {uri}; ADBOOSTER_CACHE moves it)"
            ):
                _make_room(folder, size_bytes)
                _copy(fs, path, target, manifest, uri)
        os.utime(target)
    return target


def verified(path: Path, uri: str) -> Path:
    """A model on a local or mounted disk, compared with its manifest where there is one."""
    manifest = (path if path.is_dir() else path.parent) / MANIFEST
    if manifest.is_file() and (wrong := _wrong(path, manifest.read_text(), path.name)):
        raise ConfigError(f"the model at {uri} differs from its {MANIFEST}: {wrong}; pull it again")
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _folder() -> Path:
    folder = Path(os.environ.get("ADBOOSTER_CACHE", Path(tempfile.gettempdir()) / f"adbooster-cache-{os.getuid()}"))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _manifest(fs: AbstractFileSystem, path: str) -> str:
    """The text of a pulled model's manifest, in its folder or beside its one file; empty: not a pulled model."""
    folder = path.rsplit("/", 1)[0] if fs.isfile(path) else path
    try:
        return fs.cat_file(f"{folder}/{MANIFEST}").decode()
    except FileNotFoundError:
        return ""


def _copy(fs: AbstractFileSystem, path: str, target: Path, manifest: str, uri: str) -> None:
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copying-"))
    try:
        fs.get(path, str(staging / target.name), recursive=fs.isdir(path))
        if wrong := _wrong(staging / target.name, manifest, path):
            raise ConfigError(f"the model at {uri} differs from its {MANIFEST}: {wrong}; pull it again")
        (staging / target.name).rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _wrong(path: Path, manifest: str, original: str) -> str:
    """What differs from the manifest, in a few words; empty: nothing. Bytes are read once a process and file.

    original  where the model came from: what a single file is called in the manifest, whatever its copy is called
    """
    try:
        files = json.loads(manifest)["files"] if manifest else {}
    except (ValueError, KeyError, TypeError):
        return f"the {MANIFEST} cannot be read"
    name = original.rsplit("/", 1)[-1]
    if manifest and not path.is_dir():
        if name not in files:
            return f"{name} is not in it"
        files, path = {path.name: files[name]}, path.parent
    for name, known in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        stat = file.stat()
        if stat.st_size != known["size_bytes"] or _sha256(file, stat.st_mtime_ns, stat.st_size) != known["sha256"]:
            return f"{name} holds other bytes"
    return ""


@cache
def _sha256(path: Path, _mtime_ns: int, _size_bytes: int) -> str:
    return sha256_of(path)


def _make_room(folder: Path, size_bytes: int) -> None:
    most = float(os.environ.get("ADBOOSTER_CACHE_GIB", 200)) * 2**30
    missing = size_bytes - shutil.disk_usage(folder).free  # other things fill the disk too
    kept = sorted((p for p in folder.iterdir() if p.suffix != ".lock"), key=lambda p: p.stat().st_mtime)
    total = size_bytes + sum(_size(p) for p in kept if not p.name.startswith(".copying-"))
    for path in kept:
        if total <= most and missing <= 0:
            return
        if time.time() - path.stat().st_mtime > IN_USE_S:  # an abandoned copy as well
            freed = _size(path)
            total, missing = total - freed, missing - freed
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
