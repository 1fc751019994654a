"""Object storage: a root folder or bucket, its catalogs, objects named by their content."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import fsspec
import pyarrow.fs
from fsspec.core import url_to_fs

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import CATALOGS, catalog_uri, split_catalog
from adbooster.contracts.redaction import redact
from adbooster.storage.outage import patience_s, room

log = logging.getLogger(__name__)
SHARED = ("objects", "weights", "models")  # folders that the catalogs of a root have in common
ACCEPTED = "weights/latest.json"  # which weights a night accepted last: of each catalog its own
CLOCK = "locks/clock"  # written to learn what time the storage has
CHECK_S = 20  # a storage that does not answer before anything is begun is not waited for
THREADS = 32  # requests to the storage at one time
FRESH_S = 12 * 3600  # an object put again is written again if older, so that vacuum (a day at least) leaves it alone


class Stat(NamedTuple):
    """What is known of a stored file without reading it; `modified` in seconds since 1970."""

    size_bytes: int
    modified: float


class Root:
    """Everything below `root_uri` (a local folder or `s3://bucket/prefix`); paths are relative, with `/`.

    `<root>/catalogs/<name>` is a catalog of the root: paths in SHARED are the root's, all others its own.
    Credentials and endpoint come from the environment (AWS_ENDPOINT_URL and the usual AWS names), never from config.
    """

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/") if "://" in uri else str(Path(uri).absolute())
        self.fs, self.base = _filesystem(self.uri)

    def __reduce__(self) -> tuple[type["Root"], tuple[str]]:
        return Root, (self.uri,)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return _is_local(self.fs)

    @cached_property
    def above(self) -> "Root | None":
        """The root whose objects, weights and models this catalog uses; None: it is a root itself.

        A folder of such an address that has objects of its own was a root before there were catalogs, and stays one.
        raises  ConfigError for a catalog of a catalog
        """
        found = split_catalog(self.uri)
        if found is None or self.fs.exists(f"{self.base}/objects"):
            return None
        above = Root(found[0])
        if above.above is not None:
            raise ConfigError(f"{self.uri} would be a catalog of a catalog; give the root {above.above.uri}")
        return above

    @property
    def catalog(self) -> str:
        """The catalog's name; empty for a root."""
        return self.uri.rsplit("/", 1)[-1] if self.above else ""

    def catalogs(self) -> list["Root"]:
        """The catalogs of this root, by name."""
        found = [Root(catalog_uri(self.uri, name)) for name in self.folders(CATALOGS)]
        return [catalog for catalog in found if catalog.above is not None]

    def _home(self, relative: str) -> "Root":
        """The root that a path hangs on."""
        shared = relative.split("/", 1)[0] in SHARED and relative != ACCEPTED
        return (shared and self.above) or self

    def path(self, relative: str) -> str:
        """The path of a file or folder in the filesystem."""
        return f"{self._home(relative).base}/{relative}"

    def address(self, relative: str) -> str:
        """The uri of a file or folder, as settings and reports name it."""
        return f"{self._home(relative).uri}/{relative}"

    def read(self, relative: str) -> bytes:
        return bytes(cast(bytes, self.fs.cat_file(self.path(relative))))

    def exists(self, relative: str) -> bool:
        return self.fs.exists(self.path(relative))

    def write(self, relative: str, content: bytes) -> None:
        """Replace one object whole: readers see the old one or the new one."""
        path = self.path(relative)
        if not _is_local(self.fs):
            self.fs.pipe_file(path, content)
            return
        with self._part(path) as part:
            part.write_bytes(content)
            os.replace(part, path)

    def create(self, relative: str, content: bytes) -> None:
        """Write one object if there is none of this name, whole and by one process only.

        raises  FileExistsError; any OSError where it is not known whether the storage kept it
        """
        path = self.path(relative)
        if not _is_local(self.fs):
            self.fs.pipe_file(path, content, mode="create")  # If-None-Match: *
            return
        with self._part(path) as part:
            part.write_bytes(content)
            os.link(part, path)

    def put_file(self, path: Path, relative: str) -> None:
        """Copy one local file, of any size, below the root: readers see it whole or not at all."""
        target = self.path(relative)
        if not _is_local(self.fs):
            self.fs.put_file(str(path), target)
            return
        with self._part(target) as part:
            shutil.copyfile(path, part)
            os.replace(part, target)

    @contextmanager
    def _part(self, path: str) -> Iterator[Path]:
        """A new file beside `path` to be filled and renamed; whatever happens, none is left.

        raises  StorageError if the disk is full
        """
        with room(self.uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".part-")
            try:
                os.fchmod(handle, 0o644)
                os.close(handle)
                yield Path(temporary)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def write_json(self, relative: str, content: Any) -> None:
        """A document that people read (settings, reports): secrets in it are hidden."""
        self.write(relative, (json.dumps(redact(content), indent=2, default=str) + "\n").encode())

    def put(self, content: bytes, extension: str) -> str:
        """Store content under the name that follows from it; returns `objects/ab/<sha256>.<ext>`. Twice is once."""
        sha256 = hashlib.sha256(content).hexdigest()
        relative = f"objects/{sha256[:2]}/{sha256}.{extension}"
        try:
            young = self.modified(relative) > time.time() - FRESH_S
        except FileNotFoundError:
            young = False
        if not young:
            self.write(relative, content)
        return relative

    def put_folder(self, folder: Path, relative: str) -> None:
        """Copy a local folder below the root; its `card.json`, which marks it as complete, goes last."""
        files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.name == "card.json", str(p)))
        for path in files:
            self.put_file(path, f"{relative}/{path.relative_to(folder).as_posix()}")

    def clear(self, folder: str) -> None:
        """Remove a folder of a run with all in it; none is fine, and what the storage refuses to remove stays."""
        if not self.is_local:
            self.remove(self.stats(folder))
        elif self.exists(folder):
            self.fs.rm(self.path(folder), recursive=True)

    def names(self, folder: str) -> list[str]:
        """Names directly below a folder, sorted; none if there is no such folder."""
        if not self.exists(folder):
            return []
        return sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.path(folder), detail=False))

    def files(self, folder: str) -> list[str]:
        """Names of the files directly below a folder, sorted; folders beside them are left out."""
        return self._names(folder, "file")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder, sorted; files beside them are left out."""
        return self._names(folder, "directory")

    def _names(self, folder: str, kind: str) -> list[str]:
        try:
            listing = self.fs.ls(self.path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        below = (i["name"].rstrip("/") for i in listing if i["type"] == kind)
        return sorted(name.rsplit("/", 1)[-1] for name in below if name != self.path(folder))

    def stats(self, folder: str) -> dict[str, Stat]:
        """Every file below a folder, by its path relative to the root; none if there is no such folder."""
        path = self.path(folder)
        listing, above = self.fs.find(path, detail=True), len(path) - len(folder)
        return {path[above:]: _stat(info) for path, info in listing.items() if info["type"] == "file"}

    def remove(self, files: Iterable[str]) -> list[str]:
        """Remove files; one that is gone already is fine. Returns those that the storage refuses to remove.

        A bucket may forbid that (a policy, object lock): what stays costs space and is wrong nowhere. Logged once a process.
        """
        wanted = sorted(files)
        refused = [name for name, why in zip(wanted, each(self._remove, wanted), strict=True) if why]
        if refused:
            _warn_of_refused(self.uri, refused[0])
        return refused

    def _remove(self, relative: str) -> bool:
        """Whether the storage refuses."""
        with suppress(FileNotFoundError):
            try:
                self.fs.rm_file(self.path(relative))
            except PermissionError:
                if self.is_local:
                    raise
                return True
        return False

    def now(self) -> float:
        """The time by the storage's own clock, the one that stamps `Stat.modified`; seconds since 1970."""
        self.write(CLOCK, b"")
        return self.modified(CLOCK)

    def modified(self, relative: str) -> float:
        """When a file was last written, by the storage's clock; seconds since 1970."""
        return _stat(self.fs.info(self.path(relative))).modified

    def missing(self, files: Iterable[str]) -> list[str]:
        """Which of these files are not there, sorted; lists each folder once, so a million cost few requests."""
        wanted = set(files)
        present = each(self.stats, sorted({name.rsplit("/", 1)[0] for name in wanted}))
        return sorted(wanted.difference(*present))

    def check_writable(self) -> None:
        """raises ConfigError if nothing can be written here, or ADBOOSTER_STORAGE_PATIENCE_S is no number"""
        patience_s()
        probe, fs = "runs/.writable", cast(Any, self.fs)
        try:
            fs.patience_s = CHECK_S
            self.write(probe, b"")
            self._remove(probe)
        except OSError as e:
            raise ConfigError(f"root_uri {self.uri} cannot be written: {e}") from e
        finally:
            fs.patience_s = None

    def arrow(self) -> pyarrow.fs.PyFileSystem:
        """The same storage as a pyarrow filesystem, for Ray Data."""
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))


def each(do: Callable, items: Iterable, at_once: int = THREADS) -> list:
    """`do` of every item, in their order, so many at a time; the first error is raised."""
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(do, items))


_warned: set[str] = set()


def _warn_of_refused(uri: str, example: str) -> None:
    if uri not in _warned:
        _warned.add(uri)
        log.warning("%s does not allow files to be removed, such as %s; what is not needed stays there", uri, example)


def _stat(info: dict) -> Stat:
    modified = info["LastModified"].timestamp() if "LastModified" in info else info["mtime"]
    return Stat(info["size"], modified)


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if uri.startswith("s3://"):
        from adbooster.storage.s3 import PatientS3  # half a second that no local root pays

        return PatientS3(), PatientS3._strip_protocol(uri).rstrip("/")
    fs, base = url_to_fs(uri)
    return fs, base.rstrip("/")


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
