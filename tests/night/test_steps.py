"""Steps that finished are not run again; a step's own process gives its report or its own error."""

import json
import signal
import subprocess
import sys

import psutil
import pytest
from pydantic import BaseModel

from adbooster.cli.load import load
from adbooster.cohorts.config import CohortsConfig, CohortsReport
from adbooster.cohorts.job import cohorts
from adbooster.contracts.errors import AdboosterError, ConfigError, LockLost, TooManyRejects
from adbooster.contracts.settings import JobConfig
from adbooster.night import state
from adbooster.night.config import NightlyConfig
from adbooster.night.state import Night
from adbooster.night.steps import Steps, _failure, as_file
from adbooster.storage import lock
from adbooster.storage.objects import Root
from tests.night.test_state import night


class Settings(JobConfig):
    size: int = 1
    deadline: str = ""


class Report(BaseModel):
    ran: int


class Jobs:
    """Three jobs that count how often they ran; `second` fails while it is told to."""

    def __init__(self):
        self.ran, self.fails = {"first": 0, "second": 0, "third": 0}, False

    def all(self, root: Root, night: Night, **sizes) -> list[Report]:
        steps = Steps(root, night, isolated=False)
        return [
            steps(getattr(self, n), Settings(root_uri=root.uri, run_id="n", size=sizes.get(n, 1))) for n in self.ran
        ]

    def first(self, config: Settings) -> Report:
        return self._ran("first")

    def second(self, config: Settings) -> Report:
        if self.fails:
            raise TooManyRejects("2 of 3 pictures were rejected")
        return self._ran("second")

    def third(self, config: Settings) -> Report:
        return self._ran("third")

    def _ran(self, name: str) -> Report:
        self.ran[name] += 1
        return Report(ran=self.ran[name])


def test_a_night_goes_on_at_the_step_that_failed(root):
    jobs, begun = Jobs(), night("n")
    jobs.fails = True
    with pytest.raises(TooManyRejects):
        jobs.all(root, begun)
    told = state.read(root, "n")
    assert [(s.step, s.state) for s in told.steps] == [("first", "finished"), ("second", "failed")]
    assert told.step("second").error == "TooManyRejects: 2 of 3 pictures were rejected"
    jobs.fails = False
    assert jobs.all(root, told) == [Report(ran=1)] * 3
    assert jobs.ran == {"first": 1, "second": 1, "third": 1}
    assert [s.state for s in state.read(root, "n").steps] == ["finished"] * 3


def test_a_step_with_other_settings_runs_again_and_so_does_what_follows(root):
    jobs, begun = Jobs(), night("n")
    jobs.all(root, begun)
    jobs.all(root, state.read(root, "n"))
    assert jobs.ran == {"first": 1, "second": 1, "third": 1}
    jobs.all(root, state.read(root, "n"), second=2)
    assert jobs.ran == {"first": 1, "second": 2, "third": 2}


def test_a_night_that_was_told_to_end_says_so(root):
    def interrupted(config: Settings) -> Report:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Steps(root, night("n"), isolated=False)(interrupted, Settings(root_uri=root.uri, run_id="n"))
    assert state.read(root, "n").steps[0].state == "stopped"


def test_no_step_begins_when_another_night_has_taken_over(root, monkeypatch):
    with lock.NightLock(root, "other"):
        told = {root.uri: {"number": 0, "token": "mine", "pid": 1}}
        with monkeypatch.context() as taken_over:
            taken_over.setenv(lock.HELD, json.dumps(told))
            with pytest.raises(LockLost, match="night other has held it"):
                Jobs().all(root, night("n"))


@pytest.mark.timeout(120)
def test_a_step_in_a_process_of_its_own_reports_as_a_call_does(root, tmp_path, monkeypatch, capfd):
    """`jobs.cohorts` of a cohort file needs no Ray. Settings come from the night, not from this environment; ${ is text."""
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    monkeypatch.setenv("ADBOOSTER_COHORTS_URI", "/nowhere.yaml")
    file = tmp_path / "cohorts.yaml"
    file.write_text("- {id: a, query: a cup, context: 'a ${night} out'}\n- {id: b, query: tea, context: a party}\n")
    config = CohortsConfig(root_uri=root.uri, run_id="n", cohorts_uri=str(file), family="${family}")
    with lock.NightLock(root, "n"):
        report = Steps(root, night("n"), isolated=True)(cohorts, config)
        assert report == CohortsReport.model_validate(state.read(root, "n").steps[0].report)
        assert (report.cohorts, report.cohorts_version) == (2, 0)
        assert json.loads(root.read("runs/n/cohorts.config.json"))["config"]["family"] == "${family}"
        assert not root.exists("runs/n/report.json")  # the night is not finished because a step is
        file.write_text("- {id: a, query: a cup, context: [a list]}\n")
        with pytest.raises(ConfigError, match="context"):
            Steps(root, night("n"), isolated=True)(cohorts, config)
    assert "ConfigError" in capfd.readouterr().err  # the step's log goes to ours


@pytest.mark.parametrize("name", ["prepare", "cohorts", "finetune", "generate"])
def test_a_step_gets_the_settings_of_its_night(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_MODELS", "/models/${x}")
    feed, cohorts_uri = "--prepare.feed-uri=/f", "--cohorts.cohorts-uri=/c"
    settings = getattr(load(NightlyConfig, ["--config", "sd15", "--root-uri", "/r", feed, cohorts_uri]), name)
    (tmp_path / "step.yaml").write_text(as_file(name, settings))
    assert load(type(settings), ["--config", str(tmp_path / "step.yaml")]) == settings


def test_a_step_that_was_killed_is_told_apart_from_one_that_says_why():
    assert isinstance(_failure("generate", 1, "TooManyRejects: 2 of 3: bad"), TooManyRejects)
    assert str(_failure("generate", 1, "TooManyRejects: 2 of 3: bad")) == "2 of 3: bad"
    killed = _failure("generate", -9, "some line")
    assert type(killed) is AdboosterError
    assert str(killed) == "the step generate was killed by signal 9; its last line: some line"


BEGIN = "import os, subprocess, sys, time\nfrom adbooster.cli import run\nfrom adbooster.storage import lock\nfrom adbooster.storage.objects import Root\n"
STEP = BEGIN + "run._end_on_sigterm()\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
NIGHT = (
    BEGIN
    + "run._end_on_sigterm()\nwith lock.NightLock(Root(sys.argv[1]), 'n'):\n    subprocess.run([sys.executable, '-c', sys.argv[2]])"
)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_step_ends_with_its_night(root, how):
    """A driver that is told to end lets go of the lock; one that is killed cannot, and its step ends nevertheless."""
    night = subprocess.Popen([sys.executable, "-c", NIGHT, root.uri, STEP], stdout=subprocess.PIPE, text=True)
    step = psutil.Process(int(night.stdout.readline()))
    night.send_signal(how)
    assert night.wait(20) == (143 if how == signal.SIGTERM else -how)
    psutil.wait_procs([step], timeout=20)
    assert not step.is_running()
    assert lock.newest(root).released == (how == signal.SIGTERM)
