"""The steps of a night one after another, in this process or in one each; a resumed night skips finished ones."""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel

from adbooster.contracts import errors
from adbooster.contracts.errors import AdboosterError, ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import JobConfig
from adbooster.engine import cluster, metrics
from adbooster.night.state import Night, Step
from adbooster.storage import lock
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
Report = TypeVar("Report", bound=BaseModel)
# What may differ between a night and its resumption without a finished step being run again.
_PASSING = {"catalog", "run_id", "dry_run", "deadline", "gpu_hours", "progress_s"}
_GRACE_S = 30  # for a step to end after SIGTERM


class Steps:
    """`steps(job, config)` runs one step of a night and keeps its state in runs/<run_id>/night.json.

    isolated  each step is a process `python -m jobs.<name>` on the same cluster: what it held there is free when it ends,
              however it ends. Otherwise it is a function call.
    Where `night` was read for resuming, a step that is finished with the same settings returns its stored report, until
    the first that is not.
    """

    def __init__(self, root: Root, night: Night, isolated: bool):
        self.root, self.night, self.isolated, self.anew = root, night, isolated, False

    def __call__(self, job: Callable[[Any], Report], config: JobConfig, name: str = "", inline: bool = False) -> Report:
        """name    of the step and its module in jobs/, where it is not the function's
        inline  a function call whatever the others are

        raises  what the job raises; LockLost before it starts if another night holds the lock"""
        name, report_class = name or job.__name__, get_type_hints(job)["return"]
        settings = config.model_dump(mode="json", exclude=_PASSING)
        step, mark = self.night.step(name), digest(json.dumps(settings, sort_keys=True))[:16]
        if step.state == "finished" and step.settings == mark and not self.anew:
            log.info("%s is finished already", name)
            return report_class.model_validate(step.report)
        lock.fence(self.root)
        self.anew = True
        self._set(step, Step(step=name, state="running", settings=mark, started_at=_now()))
        log.info("%s begins", name)
        try:
            report = self._run(name, job, config, report_class, self.isolated and not inline)
        except BaseException as e:
            state = "failed" if isinstance(e, Exception) else "stopped"
            error = f"{type(e).__name__}: {e}"
            self._set(step, step.model_copy(update={"state": state, "ended_at": _now(), "error": error}))
            raise
        done = {"state": "finished", "ended_at": _now(), "report": report.model_dump(mode="json")}
        self._set(step, step.model_copy(update=done))
        return report

    def skip(self, name: str, why: str) -> None:
        """The step is not due tonight."""
        log.info("%s is left out: %s", name, why)
        self._set(self.night.step(name), Step(step=name, state="skipped", why=why, ended_at=_now()))

    def _set(self, step: Step, now: Step) -> None:
        for name in Step.model_fields:
            setattr(step, name, getattr(now, name))
        self.night.save(self.root)

    def _run(self, name: str, job: Callable, config: JobConfig, report_class: type[Report], isolated: bool) -> Report:
        if isolated:
            return report_class.model_validate_json(_in_a_process(name, config))
        with metrics.of_run(name, config.run_id):
            return job(config)


def _in_a_process(name: str, config: JobConfig) -> str:
    """Run `python -m jobs.<name>`; its stderr is forwarded to ours. Returns the last line of its stdout: its report."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix=f"adbooster-{name}-") as file:
        file.write(as_file(name, config))
        file.flush()
        command = [sys.executable, "-m", f"jobs.{name}", "--config", file.name]
        child = subprocess.Popen(
            command, env=_environment(config), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        last = {"out": "", "err": ""}
        forwarding = threading.Thread(target=_forward_err, args=(child, last))
        forwarding.start()
        try:
            for line in child.stdout or ():
                if last["out"]:
                    print(last["out"], end="", flush=True)
                last["out"] = line
            code = child.wait()
        except BaseException:
            _end(child)
            raise
        finally:
            forwarding.join(_GRACE_S)
    if code:
        raise _failure(name, code, last["err"].strip())
    return last["out"]


def as_file(name: str, config: JobConfig) -> str:
    """The settings as a YAML file that loads as the same settings, whatever they hold."""
    return yaml.safe_dump({name: _escaped(config.model_dump(mode="json"))})


def _forward_err(child: subprocess.Popen, last: dict[str, str]) -> None:
    for line in child.stderr or ():
        last["err"] = (line.strip() and line) or last["err"]
        sys.stderr.write(line)
        sys.stderr.flush()


def _end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _failure(name: str, code: int, last_line: str) -> AdboosterError:
    """The step's own error, where its last line names one."""
    kind, _, text = last_line.partition(": ")
    error_class = getattr(errors, kind, None)
    if isinstance(error_class, type) and issubclass(error_class, AdboosterError):
        return error_class(text)
    if code == 2:
        return ConfigError(f"the step {name} refused its settings: {last_line}")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return AdboosterError(f"the step {name} {how}; its last line: {last_line}")


def _environment(config: JobConfig) -> dict[str, str]:
    """Ours, with the cluster's address, without variables that would override the step's settings."""
    ours = {f"ADBOOSTER_{name}".upper() for name in type(config).model_fields} | {"ADBOOSTER_SUMMARY"}
    kept = {k: v for k, v in os.environ.items() if k.split("__")[0].upper() not in ours}
    return kept | {"RAY_ADDRESS": cluster.address()}


def _escaped(value: Any) -> Any:
    """The value with ${...} escaped, so that the step does not expand it."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def _now() -> datetime:
    return datetime.now(UTC)
