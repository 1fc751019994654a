"""How a job starts and ends: settings, logging, checks, Ray, the run folder, the report, the exit code."""

import ctypes
import json
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib import import_module, metadata
from pkgutil import resolve_name
from types import TracebackType

from pydantic import BaseModel

from adbooster.cli.load import load, section_of
from adbooster.contracts import errors
from adbooster.contracts.errors import AdboosterError, ConfigError
from adbooster.contracts.redaction import Formatter, redact
from adbooster.contracts.settings import JobConfig, code_commit
from adbooster.storage import lock, outage
from adbooster.storage.objects import Root

log = logging.getLogger("adbooster")


def main(config_class: type[JobConfig], job: str, argv: list[str] | None = None) -> None:
    """Run one job as a program: exit code 0 only if it did all it should; its report is the last line of stdout.

    job  `adbooster.<room>.job:<function>`; it is imported, with Ray and the models' libraries, once the settings are
         known to work
    """
    logging.basicConfig(level="WARNING")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    sys.excepthook = _print_redacted
    log.setLevel(os.environ.get("ADBOOSTER_LOG", "INFO"))
    _end_on_sigterm()
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words or not sys.stdout.isatty()
    try:
        config = load(config_class, [word for word in words if word != "--json"])
        with _on_terminal(config), outage.room(f"this machine (such as {tempfile.gettempdir()}; TMPDIR moves that)"):
            report = run(config, job)
            _stop_cluster()  # it prints lost workers to stdout; the report comes after it, as the last line
    except AdboosterError as e:
        print(redact(f"{type(e).__name__}: {e}"), file=sys.stderr)
        raise SystemExit(2 if isinstance(e, ConfigError) else 1) from None
    except Exception as e:
        if not (said := _said_by_a_worker(e)):
            raise
        print(redact(said), file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again: finished work is reused", file=sys.stderr)
        _stop_cluster()
        raise SystemExit(130) from None
    part_of_night = lock.held(Root(config.root_uri))
    if not part_of_night and (sys.stderr.isatty() or os.environ.get("ADBOOSTER_SUMMARY")):
        from adbooster.cli.summary import print_summary

        print_summary(report)
    if as_json:
        print(json.dumps(redact(report.model_dump(mode="json"))), flush=True)


def _said_by_a_worker(error: Exception) -> str:
    """The sentence of an error of ours that ended a worker: Ray passes on its traceback only; empty: it was none."""
    if all(kind.__name__ != "RayTaskError" for kind in type(error).__mro__):
        return ""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [found for line in lines if (found := re.match(rf"{errors.__name__}\.(\w+: .+)", line))]
    return said[-1][1] if said else ""


def _on_terminal(config: JobConfig) -> AbstractContextManager:
    """The live block of a night on a terminal; nothing elsewhere, where log lines are read."""
    if not sys.stderr.isatty() or config.dry_run or section_of(type(config)) != "nightly":
        return nullcontext()
    from adbooster.cli.live import shown

    return shown(Root(config.root_uri), config.run_id)


def _stop_cluster() -> None:
    if "ray" in sys.modules:
        from adbooster.engine import cluster

        cluster.stop()


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _end_on_sigterm() -> None:
    """SIGTERM ends a job as an error does, so that a night releases its lock; a step ends with its night's process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    night = lock.held()
    if night and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != night["pid"]:
            raise SystemExit(143)


def run(config: JobConfig, job: str) -> BaseModel:
    """Check what can be checked, start Ray, run the job, and leave config.json and report.json in the run's folder."""
    room, name = job.split(":")[0].rpartition(".")[0], section_of(type(config))
    import_module(f"{room}.checks").check(config)
    root = Root(config.root_uri)
    if not config.dry_run:
        root.write_json(f"runs/{config.run_id}/{name}.config.json", _provenance(config))
    function: Callable[[JobConfig], BaseModel] = resolve_name(job)
    from adbooster.engine import cluster, metrics

    if config.needs_ray:
        cluster.start()
    part_of_night = lock.held(root)
    with metrics.of_run(name, config.run_id):
        report = function(config)
    if not config.dry_run:
        # report.json says that the run is finished: other runs no longer use what it staged.
        file = f"{name}.report.json" if part_of_night else "report.json"
        root.write_json(f"runs/{config.run_id}/{file}", report.model_dump(mode="json"))
    return report


def _provenance(config: JobConfig) -> dict:
    """The run's inputs and code: settings, versions, commit, time."""
    packages = ("adbooster", "ray", "torch", "diffusers", "transformers", "open_clip_torch", "deltalake", "onnxruntime")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions | {"python": platform.python_version()},
        "git_commit": code_commit(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
