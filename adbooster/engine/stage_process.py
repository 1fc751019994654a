"""The process that a stage runs in: beside its actor, so that a row can end it without ending anything else.

It is told by messages over a pipe: ("stage", class, arguments) to build one, ("rows", Arrow IPC, seconds) to call it; and
answers ("built",), ("rows", Arrow IPC) or ("failed", Failure), with ("loading",), ("loaded",), ("goes on",),
("count", metric, value) and ("ask", question) before; the actor answers the last at once. It ends with its pipe. Imports no Ray: a stage needs none.
"""

import copy
import errno
import faulthandler
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import pyarrow as pa

from adbooster.contracts.errors import AdboosterError

_AFTER_ITS_ACTOR = 3  # times its limit that a call may take before the process ends itself, its actor being gone
_STORAGE = ("s3fs.", "gcsfs.", "adlfs.", "botocore.", "aiobotocore.")
_GPU = ("OutOfMemoryError", "AcceleratorError", "DeferredCudaCallError")
_GPU_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NCCL")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS)
NETWORK_S = "network_s"  # counted by `in_network`; no metric of its own
_actor: Connection | None = None
_telling = threading.Lock()  # stages may count from several threads
_asking = threading.Lock()
_networks = threading.Lock()
_in_networks, _since = 0, 0.0
_limit_s = 0.0  # of the call that is under way


class Failure(NamedTuple):
    """An exception of a stage: pickled if it can be, else as RuntimeError, and as text; `of_machine`: no row is to blame."""

    error: Exception
    text: str
    of_machine: bool

    @property
    def place(self) -> str:
        """What tells one error from another: its type and the lines it came through."""
        lines = [line for line in self.text.splitlines() if line.startswith('  File "')]
        return f"{type(self.error).__name__} {' '.join(lines)}"


@contextmanager
def loading() -> Iterator[None]:
    """Around what a stage loads in the middle of a call, such as a model: a row is not blamed for its time and memory."""
    _tell("loading")
    try:
        yield
    finally:
        _tell("loaded")


def goes_on() -> None:
    """Say, in a call, that it waits for others or has got further: the time that it may take begins anew."""
    if _actor is not None:
        _end_after(_limit_s)
        _tell("goes on")


def count(metric: str, value: float) -> None:
    """Add to a metric of engine.metrics, which are kept by the actor."""
    _tell("count", metric, value)


def ask(question: Any) -> Any:
    """What the actor answers (`Isolated.answers`), while a call is under way; None if it answers nothing, or there is none."""
    if _actor is None:
        return None
    with _asking:
        _tell("ask", question)
        return _actor.recv()


@contextmanager
def in_network() -> Iterator[None]:
    """Around a network at work: the seconds in which any thread of the stage is inside are its time in networks."""
    global _in_networks, _since
    with _networks:
        if not _in_networks:
            _since = time.monotonic()
        _in_networks += 1
    try:
        yield
    finally:
        with _networks:
            _in_networks -= 1
            spent = 0.0 if _in_networks else time.monotonic() - _since
        if spent:
            count(NETWORK_S, spent)


def _tell(*message: Any) -> None:
    if _actor is not None:
        with _telling:
            _actor.send(message)


def of_machine(error: BaseException) -> bool:
    """Whether an error says nothing about the rows in hand: it would come with any others too.

    Those are the errors of this package (settings, schemas, locks), of missing libraries, of the GPU and of disks, and
    all that came out of the storage but a missing object.
    """
    if isinstance(error, AdboosterError | ImportError):
        return True
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & set(_GPU) or (isinstance(error, RuntimeError) and any(word in str(error) for word in _GPU_WORDS)):
        return True
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    if isinstance(error, FileNotFoundError):
        return False
    modules = [frame.f_globals.get("__name__", "") + "." for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [name for name in modules if name.startswith("adbooster.")]
    return any(n.startswith(_STORAGE) for n in modules) or bool(ours and ours[-1].startswith("adbooster.storage."))


def serve(fd: int) -> None:
    """Build and call stages as asked over the pipe `fd`, until it is closed or the actor is gone."""
    global _actor, _limit_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job, which ends its actors
    faulthandler.enable()
    _actor = Connection(fd)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    stage = None
    while True:
        try:
            kind, *what = _actor.recv()
        except EOFError:
            return
        except Exception as e:  # the stage's module cannot be imported here
            _answer(("failed", _failure(e)))
            continue
        try:
            if kind == "stage":
                stage = None  # what it holds is let go before the next one loads
                make, init = what
                stage = make(**init)
                answer = ("built",)
            else:
                assert stage is not None
                _limit_s = what[1]
                _end_after(_limit_s)
                answer = ("rows", to_ipc(stage(from_ipc(what[0]))))
        except Exception as e:
            answer = ("failed", _failure(e))
        finally:
            faulthandler.cancel_dump_traceback_later()
        _answer(answer)


def _end_after(limit_s: float) -> None:
    faulthandler.dump_traceback_later(limit_s * _AFTER_ITS_ACTOR, exit=True)


def _answer(message: tuple) -> None:
    assert _actor is not None
    with _telling:
        _actor.send(message)


def _failure(error: Exception) -> Failure:
    text, blameless = traceback.format_exc(), of_machine(error)
    try:
        pickle.dumps(copy.copy(error))  # copying makes it anew, as the actor will have to
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(error.with_traceback(None), text, blameless)


def _end_with(actor: int) -> None:
    while os.getppid() == actor:
        time.sleep(1)
    os._exit(1)


def to_ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def from_ipc(content: bytes) -> pa.Table:
    with pa.ipc.open_stream(content) as stream:
        return stream.read_all()


if __name__ == "__main__":  # as the module that stages import, not as a second copy of it
    from adbooster.engine import stage_process

    stage_process.serve(int(sys.argv[1]))
