"""A night on a terminal and without one, and what an interrupted one leaves."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adbooster.cli.load import load
from adbooster.night import state
from adbooster.night.config import NightlyConfig
from adbooster.night.job import nightly
from adbooster.storage import lock, tables
from adbooster.storage.objects import Root

REPO = Path(__file__).parents[2]
SMALL = REPO / "tests" / "former_root" / "night.yaml"
NOISE = ("streaming_executor", "core_worker", "raylet", "Dataset dataset_", "INFO ", "DEBUG", "WARNING", "Traceback")


def command(root: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "jobs.nightly",
        "--config",
        str(SMALL),
        "--root-uri",
        str(root),
        "--run-id",
        "n",
        *more,
    ]


def on_a_terminal(words: list[str]) -> tuple[int, str]:
    """Run a command with all its streams on a terminal; its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words, cwd=REPO, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"COLUMNS": "150"}
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 200
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break
        elif process.poll() is not None:
            break
    return process.wait(20), shown.decode(errors="replace")


@pytest.mark.timeout(240)
def test_a_terminal_shows_one_block_and_nothing_of_rays(tmp_path):
    code, shown = on_a_terminal(command(tmp_path / "root"))
    assert code == 0, shown[-2000:]
    for step in ("prepare", "cohorts", "finetune", "generate", "evaluate", "maintain"):
        assert step in shown
    assert "✓" in shown
    assert "report:" in shown
    assert not [word for word in NOISE if word in shown], shown
    assert '{"job"' not in shown, "the report is in report.json"
    root = Root(str(tmp_path / "root"))
    assert json.loads(root.read("runs/n/report.json"))["generate"]["published"] == 4
    log = root.read("runs/n/job.log").decode()
    assert "INFO adbooster.night.steps: generate begins" in log


@pytest.mark.timeout(240)
def test_an_interrupted_night_ends_with_a_sentence_and_the_next_takes_it_up(warm_ray, tmp_path):
    root = Root(str(tmp_path / "root"))
    process = subprocess.Popen(
        command(tmp_path / "root"),
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a parent may have made it ignore
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        night = state.read(root, "n") if root.exists("runs/n/night.json") else None
        if night and night.step("generate").state == "running":
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in errors
    night = state.read(root, "n")
    assert night is not None
    assert night.state == "stopped"
    claim = lock.newest(root)
    assert claim is not None
    assert claim.released
    before = tables.version(root, "samples")
    report = nightly(load(NightlyConfig, [*command(tmp_path / "root")[3:-1], "next"]))
    assert report.prepare.new_or_changed == 0
    assert tables.version(root, "samples") == before
    assert report.generate is not None
    assert report.generate.published == 4
