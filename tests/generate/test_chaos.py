"""Three nodes disturbed at random moments, a few seeds of what `python -m tests.benchmarks.chaos` does with many."""

import subprocess
import sys
from pathlib import Path

import pytest

from adbooster.storage import tables
from tests.benchmarks import chaos
from tests.benchmarks.chaos_nodes import act


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_random_kills_the_table_is_the_undisturbed_one(tmp_path):
    """A process of its own: a cluster beside the session's Ray."""
    command = [sys.executable, "-m", "tests.benchmarks.chaos", "--seeds", "3", "--out", tmp_path / "chaos.jsonl"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "| differences | 0 |" in done.stdout
    assert "| seeds with a fault that met something | 3 |" in done.stdout


def test_what_was_killed_and_what_differed_is_counted():
    lines = [
        {
            "met": {"driver": 1, "node": 1, "slow_down": 1},
            "s3": {"lost": 3},
            "exit_codes": [-9, 0],
            "seconds": 9,
            "differs": False,
        },
        {"met": {}, "s3": {"lost": 1, "slow": 1}, "exit_codes": [0], "seconds": 4, "differs": True},
    ]
    told = chaos.table([line | {"too_late": False} for line in lines])
    for row in (
        "seeds | 2",
        "met something | 1",
        "driver killed | 1",
        "slow_down | 1",
        "worker killed | 0",
        "requests lost | 4",
    ):
        assert f"{row} |" in told
    assert "| runs | 3 |" in told
    assert "started again | 1 |" in told
    assert "| differences | 1 |" in told


def test_an_operators_acts_meet_what_is_there_before_a_night(root):
    """Each has something to do, so that a seed that draws it disturbs something."""
    chaos.stock(root)
    before = {name: tables.version(root, name) for name in ("samples", "cohorts", "creatives")}
    assert act("vacuum", root)
    assert {name: tables.version(root, name) for name in before} == before
    assert act("compaction", root)
    assert {name: tables.version(root, name) for name in before} == {name: n + 1 for name, n in before.items()}
    assert not act("compaction", root)
    assert tables.read(root, "creatives").num_rows == 2
    assert act("rollback", root)
    assert tables.read(root, "creatives").num_rows == 0
    assert not act("rollback", root)
    assert all(root.exists(name) for name in root.stats("objects"))
