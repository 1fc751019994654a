"""The flags of a job: the list of them, suggestions for a mistyped one, and a readable `--help`."""

import difflib
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from adbooster.contracts.errors import ConfigError

HELP = ("--help", "-h")
SHOWN = 20
OFTEN_CHANGED = (
    *(
        "root_uri",
        "catalog",
        "run_id",
        "dry_run",
        "resume",
        "train",
        "deadline",
        "gpu_hours",
        "feed_uri",
        "cohorts_uri",
    ),
    *("interests_uri", "mask_model", "caption_model", "base", "weights", "rank_model", "judge_model", "device"),
    *("max_reject_share", "workers", "steps", "learning_rate", "lora.rank", "targeting.rule", "targeting.n"),
    *("recipe.candidates", "recipe.num_inference_steps", "recipe.guidance_scale", "recipe.size_px", "min_coverage"),
    *("marks_uri", "most", "panel.products", "rule", "channels", "public_base_url", "require"),
)
"""Settings that `--help` shows, the most important first."""


class Flag(NamedTuple):
    """One setting as a flag; `group` holds others, `open` takes any key below it."""

    name: str
    """dotted, as in a settings file: `prepare.rules.max_mb`"""
    field: FieldInfo
    group: bool
    open: bool

    @property
    def text(self) -> str:
        return "--" + self.name.replace("_", "-")


def flags_of(model: type[BaseModel], prefix: str = "") -> Iterator[Flag]:
    """Every setting of a job, groups before what is in them."""
    for name, field in model.model_fields.items():
        groups = _groups(field.annotation)
        yield Flag(prefix + name, field, bool(groups), _is_open(field.annotation))
        for group in groups:
            yield from flags_of(group, f"{prefix}{name}.")


def _groups(kind: Any) -> list[type[BaseModel]]:
    """The group of settings that a field holds, if it holds one (not a list of them)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if get_origin(kind) in (tuple, list, dict):
        return []
    return [group for part in get_args(kind) for group in _groups(part)]


def _is_open(kind: Any) -> bool:
    return get_origin(kind) is dict or any(_is_open(part) for part in get_args(kind))


def check_flags(model: type[BaseModel], argv: list[str]) -> None:
    """raises ConfigError for the first flag that is not a setting, with the nearest settings"""
    known = list(flags_of(model))
    exact = {flag.text for flag in known} | {flag.text.replace("--", "--no-", 1) for flag in known}
    exact |= {_negated(flag) for flag in known}
    below = tuple(f"{flag.text}." for flag in known if flag.open)
    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name not in exact and not name.startswith(below):
            raise ConfigError(f"unknown setting {name}{did_you_mean(name, model)}; `--help` lists them")


def _negated(flag: Flag) -> str:
    """The flag that switches a setting of a group off: `--recipe.no-shadow`."""
    group, _, name = flag.text.removeprefix("--").rpartition(".")
    return f"--{group}.no-{name}" if group else f"--no-{name}"


def did_you_mean(name: str, model: type[BaseModel]) -> str:
    """`; did you mean --a or --b?`, or nothing where no setting is near."""
    known = [flag.text for flag in flags_of(model)]
    last = name.rpartition(".")[2].removeprefix("--")
    same = [flag for flag in known if flag.removeprefix("--").rpartition(".")[2] == last]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    by_last = [
        f for f in known if difflib.SequenceMatcher(None, f.rpartition(".")[2].removeprefix("--"), last).ratio() > 0.8
    ]
    nearest = sorted(dict.fromkeys(same or [*near, *by_last]), key=lambda f: -_likeness(f, name))[:2]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _likeness(flag: str, name: str) -> float:
    return difflib.SequenceMatcher(None, flag, name).ratio()


def help_asked(argv: list[str]) -> str:
    """What help is asked for: `often` (the settings people change), `all`, or a section; empty: none."""
    for at, word in enumerate(argv):
        if word in HELP:
            return argv[at + 1] if at + 1 < len(argv) and not argv[at + 1].startswith("-") else "often"
    return ""


def print_help(model: type[BaseModel], asked: str) -> None:
    """Print settings with defaults and meanings.

    raises ConfigError for an unknown section
    """
    known = list(flags_of(model))
    sections = {flag.name: flag for flag in known if flag.group and "." not in flag.name}
    single = [flag for flag in known if not flag.group]
    lines = [(model.__doc__ or "").strip(), ""]
    if asked == "often":
        shown = _often(single)
        lines += ["Settings that people change (in a file named by --config, ADBOOSTER_..., or as flags):", ""]
        lines += [line for flag in shown for line in _lines(flag)]
        lines += ["", "Sections (`--help SECTION`; `--help all` for everything):", ""]
        lines += [f"  {name:<12} {_meaning(flag.field)}" for name, flag in sections.items()]
        lines += ["", "--config FILE (or a preset: sd15) gives settings; --json prints the report on a terminal too."]
    elif asked == "all":
        lines += [line for flag in single for line in _lines(flag)]
    elif asked in sections:
        lines += [line for flag in single if flag.name.startswith(f"{asked}.") for line in _lines(flag)]
    else:
        raise ConfigError(f"there is no section {asked!r}; sections are {', '.join(sections) or '(none)'} and all")
    print("\n".join(lines))


def _often(single: list[Flag]) -> list[Flag]:
    """Those of OFTEN_CHANGED that this job has; of several sections the first; canary, evaluate and learn last."""
    flags: dict[str, Flag] = {}
    for name in OFTEN_CHANGED:
        fits = [flag for flag in single if flag.name == name or flag.name.endswith(f".{name}")]
        if fits:
            best = min(
                fits, key=lambda f: (f.name.startswith(("canary.", "evaluate.", "learn.")), not f.field.is_required())
            )
            flags[best.name] = best
    return list(flags.values())[:SHOWN]


def _lines(flag: Flag) -> list[str]:
    default = "required" if _default(flag.field) is PydanticUndefined else f"default {_default(flag.field)!r}"
    meaning = textwrap.fill(
        f"{_meaning(flag.field)} ({default})", 100, initial_indent="      ", subsequent_indent="      "
    )
    return [f"  {flag.text}", meaning]


def _default(field: FieldInfo) -> Any:
    return PydanticUndefined if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())
