"""How far a stage is: for the log, for `adbooster status`, and for whatever shows it on a terminal."""

import logging
import threading
import time
from datetime import UTC, datetime

from adbooster.engine import metrics
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
_running: list["Progress"] = []


def current() -> "Progress | None":
    """The stage that runs in this process, if one does."""
    return _running[-1] if _running else None


def write_facts(root: Root, run_id: str, job: str, done: int, total: int, line: str) -> None:
    """Keep how far a job is as runs/<run_id>/progress.json; a storage that fails is no reason to end a night."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"job": job, "at": now, "done": done, "total": total, "line": line}
    try:
        root.write_json(f"runs/{run_id}/progress.json", facts)
    except OSError as e:
        log.warning("progress could not be written: %s", e)


class Progress:
    """One line in the log every `every_s` seconds while a stage runs, for logs that are not a terminal.

    The same line goes to runs/<run_id>/progress.json, where `root` is given, for `adbooster status`.
    """

    def __init__(self, what: str, total: int, every_s: float, root: Root | None = None):
        self.what, self.total, self.every_s, self.done, self.root = what, total, every_s, 0, root
        self.tags = metrics.tags()
        self._stop = threading.Event()

    def add(self, rows: int) -> None:
        self.done += rows
        metrics.queue(self.total - self.done, self.tags)

    def __enter__(self) -> "Progress":
        self._started = time.monotonic()
        metrics.queue(self.total, self.tags)
        self._thread = threading.Thread(target=self._report, daemon=True)
        self._thread.start()
        _running.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _running.remove(self)
        self._stop.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._stop.wait(self.every_s):
            log.info(self.line())
            if self.root and self.tags["run_id"]:
                write_facts(self.root, self.tags["run_id"], self.tags["job"], self.done, self.total, self.line())

    def line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = self.done / max(seconds, 1e-9)
        left = f", about {(self.total - self.done) / rate:.0f} s to go" if self.done else ""
        return f"{self.what}: {self.done:,} of {self.total:,} in {seconds:.0f} s, {rate:.1f}/s{left}"
