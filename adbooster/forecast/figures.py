"""Measured figures: of a root's runs, of the table in this package (figures.yaml), or given by a person."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import yaml
from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.engine import stage_records
from adbooster.forecast.workload import network_steps
from adbooster.storage import tables
from adbooster.storage.objects import Root

NAMES = {
    "step_s": "GPU: a guided step of one picture",
    "decode_s": "GPU: a picture through the VAE",
    "clip_s": "GPU: a candidate scored by CLIP",
    "gates_s": "GPU: a candidate through the gates' networks",
    "mask_s": "GPU: a photo through the mask network",
    "caption_s": "GPU: a photo's caption",
    "place_s": "core: a request placed",
    "finish_s": "core: a creative finished, encoded, proven and stored",
    "fetch_s": "core: a photo fetched and decoded",
    "shrink_s": "core: a photo made ready for the networks",
    "refine_s": "core: a mask refined and stored",
    "plan_s": "core: a request of the catalog planned",
    "creative_bytes": "a creative's file",
    "photo_bytes": "a photo with its mask",
    "row_bytes": "a row of tables/creatives",
}
"""All that a forecast asks for, `_s` in seconds."""
IN_STEP = "in step_s"
MODEL = "sd15"
PAINTER = ("step_s", "decode_s", "clip_s", "gates_s")
PAINTED = ("Placer", "Painter", "Finisher")
PREPARE = {"Fetcher": "fetch_s", "Shrinker": "shrink_s", "Refiner": "refine_s"}


class Figure(BaseModel):
    """One measured number; by: project, others (published), root (a run below it), you (given on the command line)."""

    name: str
    value: float
    by: Literal["project", "others", "root", "you"]
    where: str


def gather(
    gpu: str,
    model: str | None,
    compiled: bool | None,
    image_format: str,
    root: Root | None = None,
    measured: Iterable[str] = (),
) -> tuple[dict[str, Figure], list[str]]:
    """All figures that are known, by name, and notes: a person's before a root's before the table's.

    model, compiled  None: as the root's runs have painted; `MODEL`, not compiled, in the table
    measured         texts as for `given`
    raises           ConfigError where nobody has measured a step of this model on this GPU
    """
    theirs, table = given(measured), _table()
    ours, notes = of_root(root) if root else ({}, [])
    if root:
        known = gpu in {entry.get("gpu") for entry in table}
        notes += _leave_out(ours, _newest_settings(root), gpu if known else None, model, compiled, image_format)
    model, compiled = model or MODEL, bool(compiled)
    found = published(table, gpu, model, compiled, image_format) | ours
    if "step_s" in theirs:  # it is of a step alone
        found = {name: figure for name, figure in found.items() if not figure.where.startswith(IN_STEP)}
    found |= theirs
    if "step_s" not in found:
        steps = sorted((e["gpu"], e["model"], e["compiled"]) for e in table if e["name"] == "step_s")
        measured_ones = ", ".join(_painted(*step) for step in steps)
        raise ConfigError(
            f"no step of {_painted(gpu, model, compiled)} has been measured; those of {measured_ones} have, and "
            "--measured step_s=0.02 gives your own"
        )
    return found, notes


def published(table: list[dict], gpu: str, model: str, compiled: bool, image_format: str) -> dict[str, Figure]:
    """The table's figures, by name, for painting with this model on this GPU."""
    wanted = {"gpu": gpu, "model": model, "compiled": compiled, "format": image_format}
    found = {}
    for entry in table:
        if all(entry[key] == value for key, value in wanted.items() if key in entry):
            found[entry["name"]] = Figure(**{name: entry[name] for name in Figure.model_fields})
            if entry.get("whole"):
                found["decode_s"] = Figure(name="decode_s", value=0, by=entry["by"], where=IN_STEP)
    return found


def _table() -> list[dict]:
    return yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text())


def _painted(gpu: str, model: str, compiled: bool) -> str:
    return f"{model} on {gpu}{' compiled' if compiled else ''}"


def of_root(root: Root) -> tuple[dict[str, Figure], list[str]]:
    """What the newest runs below a root have measured, by name, and notes on what they have not."""
    found, notes = _painting(root)
    prepared = stage_records.newest(root, "prepare", PREPARE)
    if prepared is None:
        notes.append("no run has measured the stages of prepare")
    else:
        run_id, stages = prepared
        values = {name: stages[stage]["row_s"] for stage, name in PREPARE.items()}
        for stage, name in (("Segmenter", "mask_s"), ("Captioner", "caption_s")):
            if stages.get(stage, {}).get("rows") and stages[stage]["gpus"]:
                values[name] = stages[stage]["row_s"] * stages[stage]["gpus"]
        found |= {name: _measured(name, value, run_id) for name, value in values.items()}
    sizes = tables.read(root, "creatives", ["size_bytes"])["size_bytes"].drop_null()
    if len(sizes):
        where = f"mean of {len(sizes)} live creatives"
        found["creative_bytes"] = Figure(
            name="creative_bytes", value=float(pc.mean(sizes).as_py()), by="root", where=where
        )
    return found, notes


def _leave_out(
    ours: dict[str, Figure],
    settings: Mapping[str, Any],
    gpu: str | None,
    model: str | None,
    compiled: bool | None,
    image_format: str,
) -> list[str]:
    """Take from a root's figures those of something else than was asked for; notes that say which and why.

    gpu  None: one that the table knows nothing of, which is the root's own
    """
    weights, is_compiled = str(settings.get("weights", "")), bool(settings.get("compiled"))
    its_format = (settings.get("recipe") or {}).get("image_format", image_format)
    on_gpu = [name for name in ours if NAMES[name].startswith("GPU")]
    reasons: list[tuple[Iterable[str], str]] = []
    if gpu:
        why = f"its runs do not record whether they used {gpu}; a --gpu of a name of your own takes them"
        reasons.append((on_gpu, why))
    if model and model.lower() not in weights.lower():
        reasons.append((PAINTER, f"its newest run painted with {weights or 'weights not recorded'}, not {model}"))
    if compiled is not None and compiled != is_compiled:
        reasons.append((PAINTER, f"its newest run painted {'' if is_compiled else 'not '}compiled"))
    if its_format != image_format:
        reasons.append((("finish_s", "creative_bytes"), f"its newest run stored {its_format}, not {image_format}"))
    notes = []
    for names, why in reasons:
        if gone := [name for name in names if ours.pop(name, None)]:
            notes.append(f"the root's own {', '.join(gone)} left out: {why}")
    return notes


def _newest_settings(root: Root) -> Mapping[str, Any]:
    measured = stage_records.newest(root, "generate", PAINTED)
    return (measured and _settings(root, measured[0])) or {}


def given(texts: Iterable[str]) -> dict[str, Figure]:
    """Figures that a person has measured: `clip_s=0.004`.

    raises  ConfigError for a name that no forecast asks for, and for a value that is no number of at least 0
    """
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if name not in NAMES or not 0 <= value < float("inf"):
            raise ConfigError(f"--measured {text} is no figure: name=number with one of {', '.join(NAMES)}")
        found[name] = Figure(name=name, value=value, by="you", where="--measured")
    return found


def _painting(root: Root) -> tuple[dict[str, Figure], list[str]]:
    """A painter's time by the steps of its recipe; decoding, CLIP, gates and further rounds are in it."""
    measured = stage_records.newest(root, "generate", PAINTED)
    if measured is None:
        return {}, ["no run has measured the stages of generate"]
    run_id, stages = measured
    recipe = _recipe(root, run_id)
    if recipe is None:
        return {}, [f"run {run_id} has no settings to say what its painters did"]
    painter = stages["Painter"]
    values = {"place_s": stages["Placer"]["row_s"], "finish_s": stages["Finisher"]["row_s"] / recipe.keep}
    if not painter["gpus"]:
        note = f"run {run_id} painted on CPUs, so its painters say nothing of a GPU"
        return {name: _measured(name, value, run_id) for name, value in values.items()}, [note]
    values["step_s"] = painter["row_s"] * painter["gpus"] / network_steps(recipe)
    found = {name: _measured(name, value, run_id) for name, value in values.items()}
    for name in PAINTER[1:]:
        found[name] = Figure(name=name, value=0, by="root", where=f"{IN_STEP}, with further rounds")
    return found, []


def _measured(name: str, value: float, run_id: str) -> Figure:
    return Figure(name=name, value=value, by="root", where=f"run {run_id}")


def _recipe(root: Root, run_id: str) -> Recipe | None:
    """What a run painted by; None where its settings are not there, or no recipe of today's."""
    try:
        return Recipe.model_validate((_settings(root, run_id) or {})["recipe"])
    except (KeyError, ValueError):
        return None


def _settings(root: Root, run_id: str) -> Mapping[str, Any] | None:
    """What a run painted with; None where it is not recorded."""
    for file, path in (("generate", ("config",)), ("nightly", ("config", "generate"))):
        try:
            values: Mapping[str, Any] = json.loads(root.read(f"runs/{run_id}/{file}.config.json"))
            for key in path:
                values = values[key]
            return values if isinstance(values["recipe"], dict) else None
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, KeyError, TypeError, ValueError):
            continue
    return None
