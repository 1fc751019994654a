"""As an operator does it: a head of its own with a token, the commands of the README, the log, the published table."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adbooster.night import state
from adbooster.storage import tables
from adbooster.storage.objects import Root

REPO = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


def free_ports(n: int) -> list[int]:
    """Below the ports that Ray gives its workers (10002 to 19999) and those that systems give to clients (from 32768)."""
    found = []
    for port in range(20100 + os.getpid() % 5000, 32000):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == n:
            return found
    raise AssertionError("no free port")


class Head:
    """`ray start --head` with its own folder, ports, home and token; stopped by its own processes' ids."""

    def __init__(self, scratch: str):
        gcs, jobs, agent, client, self.metrics = free_ports(5)
        self.token = secrets.token_hex(32)
        # `adbooster` as an installed package has it, but of this checkout.
        installed = Path(scratch) / "bin" / "adbooster"
        installed.parent.mkdir()
        installed.write_text(f'#!/bin/sh\nexec {sys.executable} -m adbooster.cli.console "$@"\n')
        installed.chmod(0o755)
        path = f"{installed.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "ADBOOSTER_"))}
        self.env = inherited | {"HOME": scratch, "PATH": path, "PYTHON": sys.executable}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_ADDRESS": f"http://127.0.0.1:{jobs}"}
        ports = [f"--port={gcs}", f"--dashboard-port={jobs}", f"--dashboard-agent-listen-port={agent}"]
        ports += [f"--metrics-export-port={self.metrics}", f"--ray-client-server-port={client}"]
        command = [str(RAY), "start", "--head", "--block", "--num-cpus=8", "--dashboard-host=127.0.0.1", *ports]
        command += [f"--temp-dir={scratch}/ray", "--disable-usage-stats"]
        environment = {k: v for k, v in self.env.items() if k != "RAY_ADDRESS"}
        self.log = open(f"{scratch}/head.log", "wb")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log, cwd=scratch)
        self._wait()

    def _wait(self) -> None:
        for _ in range(240):
            assert self.process.poll() is None, Path(self.log.name).read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{self.env['RAY_ADDRESS']}/api/version", timeout=2)
            except OSError as e:
                if getattr(e, "code", None) == 401:  # it is there, and asks for the token
                    return
            time.sleep(0.5)
        raise AssertionError("the head did not start")

    def run(self, command: str, timeout_s: float = 400, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=REPO,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def stop(self) -> None:
        mine = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.log.close()


@pytest.fixture(scope="module")
def head():
    scratch = tempfile.mkdtemp(prefix="adb", dir="/tmp")
    started = Head(scratch)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def commands_of_the_readme() -> list[str]:
    """The lines below "in another terminal" in the cluster section of docs/operate.md, but for the one that names address and folder."""
    section = (REPO / "docs" / "operate.md").read_text().split("## On a cluster")[1].split("\n## ")[0]
    block = re.search(r"```console\n# in another terminal[^\n]*\n(.*?)```", section, re.DOTALL)[1].splitlines()
    assert block[0].startswith("export RAY_ADDRESS=http://127.0.0.1:8265 ROOT=")
    return block[1:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_readmes_night_on_a_head_with_a_token(head, tmp_path):
    submit, *after = commands_of_the_readme()
    assert submit.startswith("cluster/submit.sh nightly ")
    with scraped(head) as series:
        done = head.run(submit, ROOT=str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    root = Root(str(tmp_path))
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"job": "nightly"')))
    live = tables.read(root, "creatives")
    assert live.num_rows == report["generate"]["published"] > 0
    assert report["generate"]["stopped"] == "gpu_hours"
    assert report["generate"]["left"] + report["generate"]["painted"] == 216
    assert root.missing(live["uri"].to_pylist()) == []
    assert (
        "INFO adbooster.night.steps: generate begins" in done.stdout
    )  # the log of the driver, and of the steps' processes:
    assert re.search(r"INFO adbooster.generate.job: 216 requests: 0 live, 0 staged, 216 to paint", done.stdout)
    night = state.read(root, report["run_id"])
    assert [(s.step, s.state) for s in night.steps] == [
        ("prepare", "finished"),
        ("cohorts", "finished"),
        ("finetune", "skipped"),
        ("canary", "skipped"),
        ("learn", "skipped"),
        ("generate", "finished"),
        ("evaluate", "finished"),
        ("maintain", "finished"),
    ]
    jobs = {p.name.split(".")[0] for p in (tmp_path / "runs" / report["run_id"]).glob("*.report.json")}
    assert jobs == {"prepare", "cohorts", "generate", "evaluate"}  # each was a process
    secrets_told = [p for p in tmp_path.rglob("*.json") if head.token in p.read_text()]
    assert secrets_told == []
    assert head.token not in done.stdout + done.stderr
    for command in after:
        told = head.run(command, ROOT=str(tmp_path))
        assert told.returncode == 0, told.stderr
        assert report["run_id"] in told.stdout
    exported(series, report)


@contextlib.contextmanager
def scraped(head: Head) -> Iterator[dict[str, float]]:
    """The last value of each series of the project, asked for every second as Prometheus would: Ray drops a process's with it."""
    series, ended = {}, threading.Event()
    request = urllib.request.Request(
        f"http://127.0.0.1:{head.metrics}/metrics", headers={"Authorization": f"Bearer {head.token}"}
    )

    def scrape() -> None:
        with contextlib.suppress(OSError):
            text = urllib.request.urlopen(request, timeout=10).read().decode()
            values = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("ray_adbooster_"))
            series.update((name, float(value)) for name, value in values)

    def keep_scraping() -> None:
        while not ended.wait(1):
            scrape()

    thread = threading.Thread(target=keep_scraping)
    thread.start()
    try:
        yield series
    finally:
        ended.set()
        thread.join()
        scrape()


def exported(series: dict[str, float], report: dict) -> None:
    """What a dashboard would draw is exported under the names that the README tells."""
    named = re.findall(r"`(ray_adbooster_\w+)`", (REPO / "docs" / "operate.md").read_text())
    assert len(set(named)) == 6
    mine = {name: value for name, value in series.items() if f'run_id="{report["run_id"]}"' in name}
    for name in set(named) - {"ray_adbooster_rejects_total"}:
        assert any(one.startswith(f"{name}{{") for one in mine), f"{name} is not exported"
    painted = [value for name, value in mine.items() if name.startswith("ray_adbooster_creatives_total{")]
    assert sum(painted) <= report["generate"]["painted"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_cannot_work_is_told_by_its_exit_code(head, tmp_path):
    wrong = head.run("cluster/submit.sh cohorts --help", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert wrong.returncode == 4
    assert "does not take the job" in wrong.stderr
    assert "nvalid authentication token" in wrong.stderr
    refused = head.run(f"cluster/submit.sh cohorts --root-uri {tmp_path} --cohorts-uri /nowhere.yaml")
    assert refused.returncode == 2
    assert "ConfigError" in refused.stdout
    assert "exit code 2" in refused.stderr


@pytest.mark.parametrize(
    ("command", "env", "said"),
    [
        ("nightly", {"RAY_ADDRESS": ""}, "RAY_ADDRESS is not set"),
        ("nightly", {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "there is no token"),
        ("nightly --config /etc/night.yaml", {}, "--config /etc/night.yaml should be a file below"),
        ("nightly --config=gone.yaml", {}, "--config gone.yaml should be a file below"),
    ],
)
def test_what_is_known_before_anything_is_sent(command, env, said):
    told = {"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x" * 64, **env}
    done = subprocess.run(
        ["bash", "-c", f"cluster/submit.sh {command}"],
        cwd=REPO,
        env=os.environ | {"PYTHON": sys.executable} | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
