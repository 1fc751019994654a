"""Stages for tests of the engine. They lie here alone, as an actor imports the whole module that its stage is in."""

import ctypes
import errno
import os
import signal
import time
from pathlib import Path

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.engine.stage_process import in_network, loading
from adbooster.storage.objects import Root

ROWS = pa.schema([("n", pa.int64()), ("reject", pa.string())])
NICED = pa.schema([*ROWS, ("niceness", pa.int64())])
MARKED = pa.schema([*ROWS, ("process", pa.int64()), ("call", pa.int64())])


class Copier:
    """Gives back the rows that it gets."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


class Marker:
    """Adds the process and the number of the call."""

    def __init__(self, first_call: int = 0):
        self.call = first_call

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.call += 1
        n = rows.num_rows
        return schema.extend(rows, MARKED, process=[os.getpid()] * n, call=[self.call] * n)


class Networked:
    """Spends time in a network and besides; adds how much its process gives way to others."""

    def __init__(self, network_s: float, other_s: float):
        self.network_s, self.other_s = network_s, other_s

    def __call__(self, rows: pa.Table) -> pa.Table:
        with in_network():
            time.sleep(self.network_s)
        time.sleep(self.other_s)
        return schema.extend(rows, NICED, niceness=[os.nice(0)] * rows.num_rows)


class Uneven:
    """Takes two seconds over the row 0, so that with two actors later blocks are finished before it."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        if rows["n"][0].as_py() == 0:
            time.sleep(2)
        return rows


class Breaker:
    """A stage that cannot be built."""

    def __init__(self):
        raise RuntimeError("built for a row that is rejected")


class Hostile:
    """Copies rows, but for those whose number is in `deeds`: what is done with a batch that holds such a row.

    folder  where a deed that is done once leaves its mark
    """

    def __init__(self, deeds: dict[int, str], folder: str = ""):
        self.deeds, self.folder = deeds, folder

    def __call__(self, rows: pa.Table) -> pa.Table:
        for n in rows["n"].to_pylist():
            if deed := self.deeds.get(n, self.deeds.get(-1)):
                getattr(self, f"_{deed}")(n)
        return rows

    def _fails(self, n: int) -> None:
        raise ValueError(f"row {n} did not converge")

    def _lacks_a_setting(self, n: int) -> None:
        raise ConfigError("size_px is 0 and should be at least 64")

    def _finds_no_gpu_memory(self, n: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _fails_on_the_storage(self, n: int) -> None:
        Root(self.folder).read("folder")

    def _misses_a_file(self, n: int) -> None:
        Root(self.folder).read("nothing-is-here")

    def _fills_the_disk(self, n: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _wants_all_memory(self, n: int) -> None:
        raise MemoryError

    def _crashes(self, n: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _exits(self, n: int) -> None:
        os._exit(7)

    def _crashes_once(self, n: int) -> None:
        mark = Path(self.folder) / str(n)
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _hangs(self, n: int) -> None:
        time.sleep(3600)

    def _hangs_in_native_code(self, n: int) -> None:
        ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter's lock

    def _swells(self, n: int) -> None:
        held = []
        while len(held) < 40:
            held.append(bytearray(os.urandom(1024)) * (64 * 1024))  # 64 MiB
            time.sleep(0.02)
        time.sleep(3600)

    def _loads(self, n: int) -> None:
        with loading():
            time.sleep(2.5)
            self.model = bytearray(os.urandom(1024)) * (600 * 1024)


class Poisoned:
    """A stage that does the deed of a row before it looks at it: deeds by a part of the row's text."""

    def __init__(self, of: type, deeds: dict[str, str], **init):
        self.stage, self.deeds, self.do = of(**init), deeds, Hostile({})

    def __call__(self, rows: pa.Table) -> pa.Table:
        for text in map(str, rows.to_pylist()):
            for mark, deed in self.deeds.items():
                if mark in text:
                    getattr(self.do, f"_{deed}")(0)
        return self.stage(rows)


class Slow:
    """Takes a tenth of a second a row."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(0.1 * rows.num_rows)
        return rows
