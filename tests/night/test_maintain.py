"""The last step of a night keeps the tables quick, and never fails a night that has published."""

import json

import pytest

from adbooster.night import state
from adbooster.night.config import NightlyConfig
from adbooster.night.job import _maintained
from adbooster.night.steps import Steps
from adbooster.storage import lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.objects import Root
from tests.night.test_nightly import config
from tests.night.test_state import night
from tests.storage.test_rollback import live, publish


@pytest.fixture
def settings(root, tiny_feed, tmp_path) -> NightlyConfig:
    return config(root.uri, tiny_feed, tmp_path)


def step(root: Root) -> state.Step:
    told = state.read(root, "night")
    assert told is not None
    return told.step("maintain")


def test_a_night_merges_small_files_in_its_own_process_and_under_its_lock(root, settings):
    for i in range(20):
        publish(root, [f"c{i}"])
    with NightLock(root, "night"):
        done = _maintained(settings, Steps(root, night("night"), isolated=True))
    assert (done.run_id, done.compacted, step(root).state) == ("night", 1, "finished")
    assert step(root).report["tables"]["creatives"]["files_after"] == 1
    assert live(root) == {f"c{i}" for i in range(20)}


def test_an_error_is_in_the_report_and_the_night_ends_well(root, settings, monkeypatch):
    publish(root, ["a"])
    root.write("tables/cohorts/_delta_log/00000000000000000000.json", b"{not json")
    with NightLock(root, "night"):
        done = _maintained(settings, Steps(root, night("night"), isolated=False))
    assert set(done.errors) == {"cohorts"}
    assert step(root).state == "finished"
    with NightLock(root, "other"):
        monkeypatch.setenv(lock.HELD, json.dumps({root.uri: {"number": 0, "token": "mine", "pid": 1}}))
        done = _maintained(settings, Steps(root, night("night"), isolated=False))
    assert "LockLost: this night's lock" in done.errors[""]
    assert tables.version(root, "creatives") == 0


def test_it_can_be_turned_off(root, settings):
    off = settings.model_copy(update={"maintain": settings.maintain.model_copy(update={"time_s": 0.0})})
    assert _maintained(off, Steps(root, night("night"), isolated=False)) is None
    assert (step(root).state, step(root).why) == ("skipped", "maintain.time_s is 0")


def test_settings_of_the_night_hold_for_it(settings):
    assert (settings.maintain.root_uri, settings.maintain.run_id) == (settings.root_uri, "night")
    given = NightlyConfig.model_validate(settings.model_dump() | {"maintain": {"history_days": 90}})
    assert (given.maintain.history_days, given.maintain.root_uri) == (90, settings.root_uri)
