"""`adbooster status`: where the night stands, also when its driver is gone."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from adbooster.cli import console
from adbooster.night import state
from adbooster.night.state import Night, Step
from adbooster.storage import lock
from adbooster.storage.lock import NightLock

BEGUN = datetime(2026, 11, 24, 1, 2, 3, tzinfo=UTC)


def night(run_id: str, **values) -> Night:
    return Night(run_id=run_id, **{"started_at": BEGUN} | values)


def told(root, capsys, *flags) -> str:
    console.main(["status", "--root-uri", root.uri, *flags])
    return capsys.readouterr().out


def test_status_tells_the_steps_of_the_newest_night(root, capsys):
    assert "no night was run here" in told(root, capsys)
    steps = [
        Step(
            step="prepare",
            state="finished",
            started_at=BEGUN,
            ended_at=BEGUN + timedelta(seconds=61),
            report={"pictures": 7},
        ),
        Step(step="finetune", state="skipped", why="the last training is 2.0 days old, due after 7"),
        Step(step="generate", state="running", started_at=BEGUN),
        Step(step="evaluate"),
    ]
    night("old", state="finished").save(root)
    night("tonight", started_at=BEGUN + timedelta(hours=1), steps=steps, gpu_hours=2).save(root)
    progress = {"job": "generate", "at": "2026-11-24T01:30:00+00:00", "line": "generate: 4 of 9", "done": 4, "total": 9}
    root.write_json("runs/tonight/progress.json", progress)
    with NightLock(root, "tonight"):
        text = told(root, capsys)
        assert "night tonight: running" in text
        assert "night old" not in text
        for part in ("0:01:01", "pictures 7", "due after 7", "generate: 4 of 9", "2 GPU-hours", "holds the lock since"):
            assert part in text
        found = json.loads(told(root, capsys, "--json", "--limit", "5"))
        assert [n["run_id"] for n in found["nights"]] == ["tonight", "old"]
        assert found["progress"]["done"] == 4
        assert found["lock"]["run_id"] == "tonight"
    assert "no night holds the lock" in told(root, capsys, "--run-id", "old")


def test_a_night_whose_driver_is_gone_is_lost(root, capsys):
    night("n", steps=[Step(step="generate", state="running", started_at=BEGUN)]).save(root)
    assert state.status(root).nights[0].state == "lost"  # nobody holds the lock
    with NightLock(root, "n"):
        assert state.status(root).nights[0].state == "running"
        claim = lock.newest(root)
        gone = claim.model_copy(update={"expires_at": BEGUN, "machine": ""})
        root.write(f"locks/night/{claim.number:012}.json", gone.model_dump_json().encode())
        assert state.status(root).nights[0].steps[0].state == "lost"
    with NightLock(root, "another"):
        assert "night n: lost" in told(root, capsys)


def test_a_night_that_there_is_not_is_an_error(root, capsys):
    with pytest.raises(SystemExit) as ended:
        told(root, capsys, "--run-id", "x")
    assert ended.value.code == 2
    assert "there is no night x" in capsys.readouterr().err
