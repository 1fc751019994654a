"""A job's settings from a YAML file, the environment and flags; one sentence for what cannot work."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from adbooster.cli.flags import check_flags, did_you_mean, help_asked, print_help
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import Config, completed
from adbooster.contracts.text import shown
from adbooster.contracts.yaml_text import parse_yaml
from adbooster.night.config import SECTIONS

SHARED = ("root_uri", "catalog", "run_id", "dry_run", "signing_key_env")
MAX_BYTES = 1 << 20  # of a config file
PRESETS = Path(__file__).parents[1] / "presets"


def load(config_class: type[Config], argv: list[str]) -> Any:
    """The job's settings from the YAML file named by --config, environment (ADBOOSTER_...) and flags, in rising order.

    A file may hold one section a job; root_uri, catalog, run_id and dry_run beside the sections hold for all. Paths in the file
    are relative to the file, and ${NAME} is an environment variable. --config also takes a preset's name (sd15).
    raises ConfigError that names the first setting that cannot work
    """
    path, rest = _config_flag(argv)
    if asked := help_asked(rest):
        print_help(config_class, asked)
        raise SystemExit(0)
    check_flags(config_class, rest)
    from_file = _from_file(config_class, path) if path else {}

    class Settings(config_class, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="ADBOOSTER_",
            env_nested_delimiter="__",
            extra="forbid",
            frozen=True,
            cli_kebab_case=True,
            cli_implicit_flags=True,
        )

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: object, **__: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags = CliSettingsSource(settings_cls, cli_parse_args=rest, cli_use_class_docs_for_groups=True)
            return flags, EnvSettingsSource(settings_cls), InitSettingsSource(settings_cls, from_file)

    Settings.__doc__ = config_class.__doc__
    try:
        values = Settings().model_dump()
    except ValidationError as e:
        raise ConfigError(_first_error(config_class, e)) from e
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


def _from_file(config_class: type[Config], path: Path) -> dict:
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, a config file at most {MAX_BYTES}")
    content = parse_yaml(path.read_bytes(), str(path)) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} should hold settings (name: value) and holds a {type(content).__name__}")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise ConfigError(f"{path} has the name {shown(odd[0])}, which is no text; settings are name: value")
    content = _relative_to(path.resolve().parent, content)
    section = section_of(config_class)
    if not isinstance(content.get(section) or {}, dict):
        raise ConfigError(f"{section} in {path} should hold settings (name: value) and is {shown(content[section])}")
    has_sections = any(isinstance(content.get(name), dict) for name in (*SECTIONS, "nightly"))
    if section not in content and (section == "nightly" or not has_sections):
        return _expanded(content, path)
    shared = {k: content[k] for k in SHARED if k in content}
    own = completed(config_class, content.get(section) or {}, content)
    return _expanded(shared, path) | _expanded(own, path, section)


def section_of(config_class: type[BaseModel]) -> str:
    """The job's section in a settings file, which is also its name in the run's folder: `generate` of GenerateConfig."""
    return config_class.__name__.removesuffix("Config").lower()


def _expanded(value: Any, path: Path, setting: str = "") -> Any:
    """Texts with ${NAME} replaced by the environment variable; $${NAME} stays ${NAME}, any other $ is a dollar.

    setting  path of `value` in the file, for the error
    raises   ConfigError for a variable that is not set or empty, and for any other use of ${
    """
    if isinstance(value, dict):
        return {k: _expanded(v, path, f"{setting}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v, path, f"{setting}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match) -> str:
        if match["escaped"]:
            return match[0][1:]
        if not match["name"]:
            raise ConfigError(
                f"{setting} in {path} holds ${{ without a name; write ${{NAME}}, or $${{ for the text ${{"
            )
        if not os.environ.get(match["name"]):
            raise ConfigError(f"the environment variable {match['name']}, which {setting} in {path} names, is not set")
        return os.environ[match["name"]]

    return re.sub(r"(?P<escaped>\$)?\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)\})?", substitute, value)


def _relative_to(folder: Path, value: Any) -> Any:
    """Values that start with ./ or ../ as absolute paths."""
    if isinstance(value, dict):
        return {k: _relative_to(folder, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_relative_to(folder, v) for v in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((folder / value).resolve())
    return value


def _first_error(config_class: type[BaseModel], e: ValidationError) -> str:
    first = e.errors()[0]
    name = ".".join(str(part) for part in first["loc"]) or "settings"
    flag = "--" + name.replace("_", "-")
    if first["type"] == "missing":
        return f"{flag} is required and has no default; give it as a flag or in the file named by --config"
    if first["type"] == "extra_forbidden":
        return f"there is no setting {name!r}{did_you_mean(flag, config_class)}; `--help` lists them"
    return f"{flag} {shown(first['input'], 200)}: {first['msg']}"
