"""A bad row stays a row: what fails, dies, hangs or swells in a stage is divided until the row is alone, and rejected.

A stage runs in a process beside its actor. What happens to that process happens to known rows: those in hand. Deaths of
the actor itself (its node is lost, its driver killed) are Ray's to repeat, and blamed on no row.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import psutil
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.redaction import redact
from adbooster.contracts.settings import Pool
from adbooster.engine import stage_process
from adbooster.engine.stage_process import Failure
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
NETWORK_S = stage_process.NETWORK_S
CRASHED, TIMED_OUT, TOO_LARGE = "crashed", "timed_out", "too_large"
DEATHS = 2  # of a process with one row alone in hand, until that row is to blame
SAME = 32  # rows that fail with one and the same error, none having succeeded, until it is not the rows' any more
ONE_BY_ONE = 32  # rows of a call that ended its process: a process more to start costs more than smaller calls
NOTES = 200  # files a stage's process leaves about its failures; the rest are counted in the tables alone
_POLL_S = 0.1
_PATIENCE = 3  # times the slowest row so far that a row of a whole batch may take
_PATIENCE_IN_PARTS = 20
_LEAST_S = 20.0
_UNKNOWN = 2  # times row_timeout_s that a batch may take before any has succeeded


@dataclass(frozen=True)
class Failures:
    """Where a stage's failed rows are written down (None: in the log alone), and the word that they are rejected with."""

    root: Root | None
    run_id: str
    word: str

    def note(self, stage: str, row: dict, word: str, **more: str) -> None:
        """One row that could not be processed, in a file below the run's folder named by stage and row."""
        if self.root is None:
            return
        shown = {k: v for k, v in row.items() if k != "known" and not _holds_bytes(v)}  # pixels in flight are left out
        path = f"runs/{self.run_id}/failures/{stage}-{digest(repr(sorted(shown.items())))[:16]}.json"
        self.root.write_json(path, redact({"stage": stage, "reject": word, **more, "row": shown}))


def _holds_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_bytes(v) for v in value.values())
    return isinstance(value, bytes) or (isinstance(value, list) and any(_holds_bytes(v) for v in value))


class Died(NamedTuple):
    """The end of a stage's process: the word for it and what was seen."""

    word: str
    detail: str


class StageProcess:
    """One process for one stage at a time, started when it is needed and again after it died."""

    def __init__(self, niceness: int = 0):
        """niceness: by how much it gives way to other processes of its node"""
        self._niceness = niceness
        self._popen: subprocess.Popen | None = None
        self._seen: psutil.Process | None = None
        self._pipe: Connection | None = None
        self._stage: bytes | None = None
        self.counts: Counter[str] = Counter()  # what stages counted since someone took it
        self.loading_s = 0.0  # that stages took to be built and to load their models
        self.answers: Callable[[Any], Any] | None = None  # what a stage asks while it is called

    def build(self, stage: bytes) -> None:
        """Make this process run `stage` (pickled: a class and its arguments); takes as long as its models take to load.

        raises  what the stage raises; RuntimeError if the process ends before it is built
        """
        if self._popen is not None and self._popen.poll() is None and self._stage == stage:
            return
        if self._popen is None or self._popen.poll() is not None:
            self._start()
        assert self._pipe is not None
        self._stage = stage
        began = time.monotonic()
        try:
            self._pipe.send_bytes(stage)
            answer = self._answer()
        except (EOFError, ConnectionError):
            raise RuntimeError(f"a stage could not be built: its process ended with {self._ended()}") from None
        self.loading_s += time.monotonic() - began
        if not isinstance(answer, Died) and answer[0] == "failed":
            self._stage = None
            raise _with_text(answer[1])

    def call(self, rows: pa.Table, seconds: float, gib: float) -> pa.Table | Failure | Died:
        """The stage's answer to `rows`, or how it failed.

        seconds  until the process is replaced, anew from each `goes_on`; gib  that it may grow by: neither counts what it loads
        """
        assert self._pipe is not None
        try:
            self._pipe.send(("rows", stage_process.to_ipc(rows), seconds))
            answer = self._answer(seconds, gib)
        except (EOFError, ConnectionError):
            return Died(CRASHED, self._ended())
        if isinstance(answer, Died):
            self.end()
            return answer
        return stage_process.from_ipc(answer[1]) if answer[0] == "rows" else answer[1]

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
        if self._pipe is not None:
            self._pipe.close()
        self._popen = self._pipe = self._stage = None

    def __del__(self) -> None:
        self.end()

    def _start(self) -> None:
        self.end()
        self._pipe, theirs = Pipe()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "adbooster.engine.stage_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        theirs.close()
        self._seen = psutil.Process(self._popen.pid)
        if self._niceness:
            with suppress(psutil.Error):  # it has ended, or may not: then it runs as others do
                self._seen.nice(min(19, int(self._seen.nice()) + self._niceness))

    def _answer(self, seconds: float | None = None, gib: float | None = None) -> tuple | Died:
        assert self._pipe is not None
        began, before, is_loading = time.monotonic(), self._gib(), False
        while True:
            if self._pipe.poll(_POLL_S):
                answer = self._pipe.recv()
                if answer[0] == "count":
                    self.counts[answer[1]] += answer[2]
                elif answer[0] == "ask":
                    self._pipe.send(self.answers and self.answers(answer[1]))
                elif answer[0] == "goes on":
                    began = time.monotonic()
                elif answer[0] in ("loading", "loaded"):
                    if is_loading:
                        self.loading_s += time.monotonic() - began
                    is_loading = answer[0] == "loading"
                    began, before = time.monotonic(), self._gib()
                else:
                    return answer
            elif not is_loading:
                if seconds is not None and time.monotonic() - began > seconds:
                    return Died(TIMED_OUT, f"no answer after {seconds:.0f} s")
                if gib is not None and self._gib() - before > gib:
                    return Died(TOO_LARGE, f"grew by more than {gib:g} GiB")

    def _gib(self) -> float:
        assert self._seen is not None
        try:
            return self._seen.memory_info().rss / 2**30
        except psutil.Error:
            return 0.0

    def _ended(self) -> str:
        assert self._popen is not None
        code = self._popen.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Isolated:
    """A stage behind a process: the rows that it can process, processed, and the others rejected by the fitting word.

    name      of the stage, for people
    stage     pickled: the class and its arguments
    out       the schema of its answers
    failures  where failed rows are noted; None: no row is ever to blame, every error and death ends the job
    answers   gives the answer to what the stage asks by `stage_process.ask`
    """

    def __init__(
        self,
        name: str,
        stage: bytes,
        out: pa.Schema,
        pool: Pool,
        failures: Failures | None,
        process: StageProcess,
        answers: Callable[[Any], Any] | None = None,
    ):
        self.name, self.stage, self.out, self.failures, self.process = name, stage, out, failures, process
        self.process.answers = answers
        self.row_timeout_s, self.max_gib, self.row_gib = pool.row_timeout_s, pool.max_row_gib, pool.max_row_gib
        self.slowest_row_s = 0.0
        self.noted, self.last_error, self.same_errors = 0, "", 0
        self.succeeded = False

    def build(self) -> None:
        """Load the stage now, where time is not counted."""
        self.process.build(self.stage)

    def take_counts(self) -> tuple[Counter[str], float]:
        """What the stage counted since the last time, by metric, and the seconds it took to load."""
        counts, self.process.counts = self.process.counts, Counter()
        loading_s, self.process.loading_s = self.process.loading_s, 0.0
        return counts, loading_s

    def __call__(self, rows: pa.Table) -> pa.Table:
        first = self._attempt(rows, self._limit_s(rows.num_rows))
        if isinstance(first, pa.Table):
            return first
        if self.failures is None:
            raise self._end_of_job(first)
        done, blamed = self._isolate(rows, first)
        if isinstance(first, Died) and first.word == TOO_LARGE and not blamed:
            self.max_gib *= 2  # the batch was too much, and no row of it
            log.warning("%s: a batch of %d needs more than max_row_gib; more is allowed", self.name, rows.num_rows)
        return done

    def _isolate(self, rows: pa.Table, failed: Failure | Died) -> tuple[pa.Table, int]:
        """The rows of a call that failed, called again in parts, and how many of them are to blame."""
        n = rows.num_rows
        if n == 1:
            return self._alone(rows, failed)
        size = 1 if isinstance(failed, Died) and n <= ONE_BY_ONE else -(-n // 2)
        done, blamed = [], 0
        for part in (rows.slice(at, size) for at in range(0, n, size)):
            alone = part.num_rows == 1
            result = self._attempt(part, self.row_timeout_s if alone else self._limit_s(part.num_rows, in_parts=True))
            if not isinstance(result, pa.Table):
                result, more = self._isolate(part, result)
                blamed += more
            done.append(result)
        return pa.concat_tables(done), blamed

    def _alone(self, row: pa.Table, failed: Failure | Died) -> tuple[pa.Table, int]:
        deaths = 1
        while isinstance(failed, Died) and failed.word == CRASHED and deaths < DEATHS:
            result = self._attempt(row, self.row_timeout_s)
            if isinstance(result, pa.Table):
                return result, 0
            failed, deaths = result, deaths + 1
        return self._rejected(row, failed), 1

    def _attempt(self, rows: pa.Table, seconds: float) -> pa.Table | Failure | Died:
        self.process.build(self.stage)
        began = time.monotonic()
        result = self.process.call(rows, seconds, self.row_gib if rows.num_rows == 1 else self.max_gib)
        if isinstance(result, pa.Table):
            self.succeeded = True
            self.slowest_row_s = max(self.slowest_row_s, (time.monotonic() - began) / rows.num_rows)
            return schema.check(result, self.out, self.name)
        if isinstance(result, Failure) and result.of_machine:
            raise self._end_of_job(result)
        return result

    def _limit_s(self, rows: int, in_parts: bool = False) -> float:
        """Seconds for a call of so many rows: what one row may take, or more where rows have taken long before."""
        if in_parts and self.succeeded:
            return min(self.row_timeout_s, max(_LEAST_S, _PATIENCE_IN_PARTS * self.slowest_row_s * rows))
        known = _PATIENCE * self.slowest_row_s * rows if self.succeeded else _UNKNOWN * self.row_timeout_s * (rows > 1)
        return max(self.row_timeout_s, known)

    def _rejected(self, row: pa.Table, failed: Failure | Died) -> pa.Table:
        assert self.failures is not None
        if isinstance(failed, Failure):
            self._count(failed)
            word = TOO_LARGE if isinstance(failed.error, MemoryError) else self.failures.word
            seen = {"error": f"{type(failed.error).__name__}: {failed.error}", "traceback": failed.text}
        else:
            word, seen = failed.word, {"ended": failed.detail}
        values = row.to_pylist()[0]
        name = next((values[n] for n in ("sample_id", "request_id", "look_id", "rendition_id") if values.get(n)), "")
        log.warning("%s: row %s is rejected as %s: %s", self.name, name, word, redact(next(iter(seen.values()))[:300]))
        if self.noted < NOTES:
            self.noted += 1
            self.failures.note(self.name, values, word, **seen)
        marked = row.set_column(row.schema.get_field_index("reject"), "reject", pa.array([word], pa.string()))
        return schema.fill(marked, self.out)

    def _count(self, failed: Failure) -> None:
        """raises the error where it came with each of the first rows of this process: then it is not the rows'"""
        self.same_errors = self.same_errors + 1 if failed.place == self.last_error else 1
        self.last_error = failed.place
        if not self.succeeded and self.same_errors >= SAME:
            raise self._end_of_job(failed)

    def _end_of_job(self, failed: Failure | Died) -> Exception:
        if isinstance(failed, Failure):
            return _with_text(failed)
        return RuntimeError(f"the process of {self.name} ended: {failed.word}, {failed.detail}")


def _with_text(failed: Failure) -> Exception:
    failed.error.add_note(failed.text)
    return failed.error


def pickled(stage: type, init: dict) -> bytes:
    """A stage as the message that its process takes; the actor never imports its module."""
    return pickle.dumps(("stage", stage, init))
