"""A night on a terminal: one block with its steps and how far each is. Everything else goes to the run's log file."""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adbooster.night import state
from adbooster.night.state import Night, Step
from adbooster.report.contact_sheet import sheet_path
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
EVERY_S = 1.0
SIGNS = {"waiting": "·", "running": "▶", "finished": "✓", "failed": "✗", "stopped": "✗", "skipped": "-", "lost": "✗"}


@contextmanager
def shown(root: Root, run_id: str) -> Iterator[None]:
    """Show the run on the terminal while the block runs; what is written to stdout and stderr goes to runs/<run_id>/job.log.

    File descriptors are redirected, not Python's objects alone, since Ray's own processes and libraries write to them.
    """
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    log_path = _log_file(root, run_id)
    try:
        with _redirected_to(log_path), _display(root, run_id, terminal, log_path):
            yield
    finally:
        terminal.close()
        if not root.is_local:
            _upload(root, run_id, log_path)


def _upload(root: Root, run_id: str, log_path: Path) -> None:
    """The log beside the run's other files; where the storage fails it stays on this machine, and the error says where."""
    try:
        root.put_file(log_path, f"runs/{run_id}/job.log")
    except OSError as e:
        log.warning("the log could not be copied to %s: %s; it is kept as %s", root.uri, e, log_path)
    else:
        log_path.unlink()


def _log_file(root: Root, run_id: str) -> Path:
    """The run's log, in the root where that is a folder, else a temporary file that is uploaded at the end."""
    if root.is_local:
        path = Path(root.path(f"runs/{run_id}/job.log"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
    handle, name = tempfile.mkstemp(prefix=f"adbooster-{run_id}-", suffix=".log")
    os.close(handle)
    return Path(name)


@contextmanager
def _redirected_to(path: Path) -> Iterator[None]:
    """stdout and stderr of this process, and of those it starts, into a file."""
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with path.open("ab") as file:
        _flush()
        for descriptor in kept:
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            _flush()
            for descriptor, before in kept.items():
                os.dup2(before, descriptor)
                os.close(before)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


@contextmanager
def _display(root: Root, run_id: str, terminal: TextIO, log_path: Path) -> Iterator[None]:
    ended = threading.Event()
    console = Console(file=terminal, force_terminal=True)
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def refresh() -> None:
            live.update(block(root, run_id, log_path), refresh=True)

        def keep_refreshing() -> None:
            while not ended.wait(EVERY_S):
                refresh()

        thread = threading.Thread(target=keep_refreshing, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            refresh()


def block(root: Root, run_id: str, log_path: Path) -> Group:
    """What the terminal shows now."""
    night = _read(root, run_id)
    table = Table("", "step", "", "how far", "took", box=None, pad_edge=False)
    if night:
        for step in night.steps:
            bar, far = _progress(root, night, step)
            table.add_row(SIGNS[step.state], step.step, bar, Text(far), _took(step))
    lines = [table if night else Text("starting ...")]
    with suppress(OSError):  # a storage that fails for a moment must not end the display, nor hide how the night ended
        if root.exists(sheet_path(run_id)):
            lines.append(Text(f"first creatives: {root.uri}/{sheet_path(run_id)}", style="bold"))
    return Group(*lines, Text(f"log: {log_path}", style="dim"))


def _read(root: Root, run_id: str) -> Night | None:
    try:
        return state.read(root, run_id)
    except (OSError, ValueError):  # read during a write, or a storage that fails for a moment
        return None


def _progress(root: Root, night: Night, step: Step) -> tuple[ProgressBar | str, str]:
    if step.state == "running":
        from adbooster.engine import progress

        if now := progress.current():
            return ProgressBar(total=max(now.total, 1), completed=now.done, width=24), now.line()
        try:
            facts = state.read_progress(root, night)
        except (OSError, ValueError):
            facts = None
        if facts:
            return ProgressBar(total=max(facts["total"], 1), completed=facts["done"], width=24), facts["line"]
        return "", "starting"
    return "", escape(step.error or step.why or "")[:120]


def _took(step: Step) -> str:
    if step.started_at is None:
        return ""
    return str(timedelta(seconds=round(((step.ended_at or datetime.now(UTC)) - step.started_at).total_seconds())))
