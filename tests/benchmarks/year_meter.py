"""What a night of the simulated year costs, and the clock that the year is simulated by.

The clock of this process is moved through a library that is loaded before the C library (LD_PRELOAD), so that Python, Arrow
and delta-rs are all told the simulated time; files get it as their time of change. Nothing in the code under test knows.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from adbooster.storage.objects import Root

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static volatile long shift_s;
void set_clock_shift(long seconds) { shift_s = seconds; }
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += shift_s;
    return failed;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""
LOADED = "ADBOOSTER_BENCHMARK_CLOCK"
LISTED = 1000  # keys that S3 lists in a request
CLOSED_WRITTEN, CLOSED_READ, DELETED, CREATED, FOLDER = 0x8, 0x10, 0x200, 0x100, 0x40000000  # of inotify


def run_with_clock() -> None:
    """Start this program again with the clock that `move_clock` moves, unless it runs with it already.

    raises  CalledProcessError, FileNotFoundError without a C compiler (cc)
    """
    if os.environ.get(LOADED):
        return
    folder = tempfile.mkdtemp(prefix="adbooster-clock-")
    source, library = Path(folder) / "clock.c", Path(folder) / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    again = os.environ | {"LD_PRELOAD": str(library), LOADED: folder}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], again)


def move_clock(to: float) -> None:
    """It is `to` now (seconds since 1970), and goes on from there."""
    shift = ctypes.CDLL(None).set_clock_shift
    shift(ctypes.c_long(0))
    shift(ctypes.c_long(round(to - time.time())))


def stamp(folder: Path) -> None:
    """Files that the kernel gave its own time get the simulated one; those of earlier nights have it already."""
    now = time.time()
    for entry in walk(folder):
        if entry.stat().st_mtime > now + 60:
            os.utime(entry.path, (now, now))


def walk(folder: Path) -> Iterator[os.DirEntry]:
    """Every file below a folder; none if there is no such folder."""
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


class Requests:
    """Counts what the driver asks of a root, as S3 would be asked, by kind.

    Outside of tables/ calls of `Root` and of its filesystem's `open` are counted: GET, PUT, HEAD, LIST (a page of 1,000)
    and DELETE. Within tables/ the kernel counts for Python and delta-rs alike (inotify): a file that was read is a GET, one
    that was written a PUT; a Parquet file that is read in ranges counts once, and HEADs are not seen.
    """

    def __init__(self, tables: Path):
        self.tables, self.found = tables, Counter[str]()
        self.watched: set[str] = set()
        self._c = ctypes.CDLL(None, use_errno=True)
        self._events = self._c.inotify_init()
        threading.Thread(target=self._read, daemon=True, name="requests").start()
        self._count(Root, "exists", "HEAD")
        self._count(Root, "modified", "HEAD")
        self._count(Root, "_names", "LIST")
        self._count(Root, "stats", "LIST", lambda files: max(1, -(-len(files) // LISTED)))
        self._count(Root, "_remove", "DELETE")
        self._count(LocalFileSystem, "open", "GET", path_at=0)
        for name in ("write", "create", "put_file"):
            self._count(Root, name, "PUT", stamped=True, path_at=1 if name == "put_file" else 0)

    def of_tonight(self) -> dict[str, int]:
        """Since the last call."""
        time.sleep(0.05)  # what the kernel has yet to tell
        found, self.found = self.found, Counter()
        return dict(sorted(found.items()))

    def watch(self) -> None:
        """Count in every folder that tables/ has by now, and in those that appear."""
        folders = [self.tables, *(p for p in self.tables.rglob("*") if p.is_dir())] if self.tables.is_dir() else []
        for folder in map(str, folders):
            if folder not in self.watched:
                kinds = CLOSED_WRITTEN | CLOSED_READ | DELETED | CREATED
                if self._c.inotify_add_watch(self._events, folder.encode(), kinds) < 0:
                    raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
                self.watched.add(folder)

    def _read(self) -> None:
        while True:
            events, at = os.read(self._events, 1 << 16), 0
            while at < len(events):
                kind = int.from_bytes(events[at + 4 : at + 8], "little")
                size = int.from_bytes(events[at + 12 : at + 16], "little")
                name = events[at + 16 : at + 16 + size].rstrip(b"\0").decode()
                at += 16 + size
                self._event(kind, name)

    def _event(self, kind: int, name: str) -> None:
        if kind & FOLDER:
            if kind & CREATED:
                self.watch()
            self.found["LIST"] += bool(kind & CLOSED_READ)
        elif kind & CLOSED_WRITTEN:
            self.found["PUT"] += 1
        elif kind & CLOSED_READ:
            self.found["GET"] += 1
        elif kind & DELETED and "#" not in name and not name.startswith(".part-"):  # names before a file is renamed
            self.found["DELETE"] += 1

    def _count(
        self,
        owner: type,
        name: str,
        kind: str,
        how_many: Callable[[Any], int] = lambda _: 1,
        stamped: bool = False,
        path_at: int = 0,
    ) -> None:
        """Count the calls of a method; `stamped`: what it writes gets the simulated time."""
        method = getattr(owner, name)

        @wraps(method)
        def counting(fs, *args, **kwargs):
            found = method(fs, *args, **kwargs)
            path = str(args[path_at]) if len(args) > path_at else ""
            if not (path.startswith("tables/") or path.startswith(str(self.tables))):
                self.found[kind] += how_many(found)
            if stamped:
                now = time.time()
                os.utime(fs.path(path), (now, now))
            return found

        setattr(owner, name, counting)


class Memory:
    """Of this process, in MB."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def now_and_peak(self) -> tuple[float, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024
