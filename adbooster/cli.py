"""How a job starts and ends: settings, logging, Ray, the run folder, the report, the exit code."""

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
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import ray
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from rich.console import Console
from rich.table import Table

from adbooster import lock, metrics, summary
from adbooster.errors import AdboosterError, ConfigError
from adbooster.evaluation import Evaluation
from adbooster.objects import Root
from adbooster.redact import Formatter, redact
from adbooster.report import percent
from adbooster.settings import code_commit, inherited

log = logging.getLogger("adbooster")
SHARED = ("root_uri", "run_id", "dry_run")
PRESETS = Path(__file__).parent / "presets"


def main(config_class: type[BaseModel], job: Callable[[Any], BaseModel], argv: list[str] | None = None) -> None:
    """Run one job as a program: exit code 0 only if it did all it promised; its report is the last line of stdout."""
    logging.basicConfig(level="WARNING")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    sys.excepthook = _say_error
    log.setLevel(os.environ.get("ADBOOSTER_LOG", "INFO"))
    _end_when_told()
    try:
        config = load(config_class, sys.argv[1:] if argv is None else argv)
        report = run(config, job)
    except AdboosterError as e:
        print(redact(f"{type(e).__name__}: {e}"), file=sys.stderr)
        raise SystemExit(2 if isinstance(e, ConfigError) else 1) from None
    ray.shutdown()  # which prints what became of lost workers to stdout; after it the report is the last line
    print(json.dumps(redact(report.model_dump(mode="json"))), flush=True)


def _say_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _end_when_told() -> None:
    """SIGTERM ends a job as an error does, so that a night lets go of its lock; a step ends with its night's process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    night = lock.held()
    if night and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != night["pid"]:
            raise SystemExit(143)


def load(config_class: type[BaseModel], argv: list[str]) -> Any:
    """The job's settings from the YAML file named by --config, environment (ADBOOSTER_...) and flags, in rising order.

    A file may hold one section a job; what stands beside the sections is shared by those that know it. Paths in the
    file are relative to the file, and ${NAME} is an environment variable. --config also takes a preset's name (sd15).
    raises ConfigError that names the first setting that cannot work
    """
    path, rest = _config_flag(argv)
    from_file = _from_file(config_class, path) if path else {}

    class Settings(config_class, BaseSettings):  # pyright: ignore[reportGeneralTypeIssues]
        model_config = SettingsConfigDict(
            env_prefix="ADBOOSTER_",
            env_nested_delimiter="__",
            extra="forbid",
            frozen=True,
            cli_kebab_case=True,
            cli_implicit_flags=True,
        )

        @classmethod
        def settings_customise_sources(cls, settings_cls, **_):
            flags = CliSettingsSource(settings_cls, cli_parse_args=rest, cli_use_class_docs_for_groups=True)
            return flags, EnvSettingsSource(settings_cls), InitSettingsSource(settings_cls, from_file)

    Settings.__doc__ = config_class.__doc__
    try:
        values = Settings().model_dump()
    except ValidationError as e:
        raise ConfigError(_first_error(e)) from e
    except SettingsError as e:
        raise ConfigError(f"{e}; `--help` lists the settings") from e
    values["run_id"] = values.get("run_id") or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return config_class.model_validate(values)


def _config_flag(argv: list[str]) -> tuple[Path | None, list[str]]:
    rest, path, args = [], None, iter(argv)
    for arg in args:
        if arg == "--config":
            path = next(args, "")
        elif arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        else:
            rest.append(arg)
    return (_config_file(path) if path is not None else None), rest


def _config_file(name: str) -> Path:
    """The file of this name, or the preset: `sd15` is adbooster/presets/sd15.yaml."""
    if Path(name).is_file():
        return Path(name)
    presets = {p.stem: p for p in sorted(PRESETS.glob("*.yaml"))}
    if name not in presets:
        raise ConfigError(f"there is no config file {name!r}; presets, by name: {', '.join(presets)}")
    return presets[name]


def _from_file(config_class: type[BaseModel], path: Path) -> dict:
    try:
        found = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise ConfigError(f"{path} is not YAML: {e}") from e
    if not isinstance(found, dict):
        raise ConfigError(f"{path} should hold settings (name: value) and holds a {type(found).__name__}")
    found = _relative_to(path.resolve().parent, found)
    section = config_class.__name__.removesuffix("Config").lower()
    if isinstance(found.get(section), dict):
        shared = {k: found[k] for k in SHARED if k in found} | inherited(config_class, found)
        return _expanded(shared, path) | _expanded(found[section], path, section)
    return _expanded(found, path)


def _expanded(value: Any, path: Path, setting: str = "") -> Any:
    """Texts with ${NAME} replaced by the environment variable; $${NAME} stays ${NAME}, any other $ is a dollar.

    setting  where `value` stands in the file, for the error
    raises   ConfigError for a variable that is not set or empty, and for any other use of ${
    """
    if isinstance(value, dict):
        return {k: _expanded(v, path, f"{setting}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, path, f"{setting}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def one(found: re.Match) -> str:
        if found["escaped"]:
            return found[0][1:]
        if not found["name"]:
            raise ConfigError(
                f"{setting} in {path} holds ${{ without a name; write ${{NAME}}, or $${{ for the text ${{"
            )
        if not os.environ.get(found["name"]):
            raise ConfigError(f"the environment variable {found['name']}, which {setting} in {path} names, is not set")
        return os.environ[found["name"]]

    return re.sub(r"(?P<escaped>\$)?\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)\})?", one, value)


def _relative_to(folder: Path, value: Any) -> Any:
    """Values that start with ./ or ../ as absolute paths."""
    if isinstance(value, dict):
        return {k: _relative_to(folder, v) for k, v in value.items()}
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((folder / value).resolve())
    return value


def _first_error(e: ValidationError) -> str:
    first = e.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    flag = "--" + name.replace("_", "-")
    if first["type"] == "missing":
        return f"{flag} is required and has no default; give it as a flag or in the file named by --config"
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; `--help` lists them"
    return f"{flag} {str(first['input'])[:200]!r}: {first['msg']}"


def run(config: Any, job: Callable[[Any], BaseModel]) -> BaseModel:
    """Check what can be checked, start Ray, run the job, and leave config.json and report.json in the run's folder."""
    module = sys.modules[job.__module__]
    module.check(config)
    root = Root(config.root_uri)
    if not config.dry_run:
        root.write_json(f"runs/{config.run_id}/{module.__name__.split('.')[-1]}.config.json", _provenance(config))
    _start_ray(module, config)
    name, part = module.__name__.split(".")[-1], lock.held(root)
    with metrics.of_run(name, config.run_id):
        report = job(config)
    if not config.dry_run:
        # report.json says that the run is finished: what it staged is no longer taken over by another.
        file = f"{name}.report.json" if part else "report.json"
        root.write_json(f"runs/{config.run_id}/{file}", report.model_dump(mode="json"))
    if not part and (sys.stderr.isatty() or os.environ.get("ADBOOSTER_SUMMARY")):
        _summary(report.model_dump())
        _found(getattr(report, "evaluation", None) or getattr(getattr(report, "evaluate", None), "evaluation", None))
    return report


def _start_ray(module: ModuleType, config: Any) -> None:
    """The cluster that RAY_ADDRESS names (a submitted job has it), or one of this machine alone."""
    if ray.is_initialized() or not getattr(module, "needs_ray", lambda _: True)(config):
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # this machine alone; otherwise Ray leaves a token in the home
    cpus = int(os.environ.get("ADBOOSTER_LOCAL_CPUS", 0)) or max(8, os.cpu_count() or 1)
    ray.init(
        address="local",
        num_cpus=cpus,  # logical: actors wait on files and each other more than they compute
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=tempfile.mkdtemp(prefix="adb-", dir="/tmp"),
    )


def _provenance(config: BaseModel) -> dict:
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


def _summary(report: dict) -> None:
    """The night in a few lines on the terminal (stderr; stdout is for the report)."""
    console = Console(stderr=True)
    uplift = (report.get("generate") or report).get("uplift")
    if uplift:
        table = Table(
            "family",
            "creatives",
            "CLIP score",
            "product on white",
            "uplift",
            title="Winners against the product on white",
        )
        for family, u in uplift.items():
            table.add_row(
                family,
                str(u["creatives"]),
                f"{u['clip_score']:.3f}",
                f"{u['neutral_score']:.3f}",
                percent(u["uplift_share"]),
            )
        console.print(table)
    painted = report.get("generate") or report
    if painted.get("left"):
        words = ", ".join(f"{n} {name}" for name, n in painted["left_by_value"].items())
        console.print(f"left for the next night by {painted['stopped']}: {painted['left']} requests ({words})")
    if report.get("gallery_uri"):
        console.print(f"report: {report['gallery_uri']}", soft_wrap=True)
    console.print(f"{report['job']} took {report['seconds']:.0f} s")


def _found(evaluation: Evaluation | None) -> None:
    """The tables of an evaluation on the terminal."""
    console = Console(stderr=True)
    for table in summary.tables(evaluation) if evaluation else ():
        console.print(table)
    for note in evaluation.notes if evaluation else ():
        console.print(note, markup=False, highlight=False)
