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
PREPARE = {"Fetcher": "fetch_s", "Shrinker": "shrink_s", "Refiner": "refine_s"}


class Figure(BaseModel):
    """One measured number; by: project, others (published), root (a run below it), you (given on the command line)."""

    name: str
    value: float
    by: Literal["project", "others", "root", "you"]
    where: str


def gather(
    gpu: str, model: str, compiled: bool, image_format: str, root: Root | None = None, measured: Iterable[str] = ()
) -> tuple[dict[str, Figure], list[str]]:
    """All figures that are known, by name, and notes: a person's before a root's before the table's.

    measured  texts as for `given`
    raises    ConfigError where nobody has measured a step of this model on this GPU
    """
    ours, notes = of_root(root) if root else ({}, [])
    theirs, table = given(measured), _table()
    found = published(table, gpu, model, compiled, image_format) | ours
    if "step_s" in theirs:  # it is of a step alone
        found = {name: figure for name, figure in found.items() if not figure.where.startswith(IN_STEP)}
    found |= theirs
    if "step_s" not in found:
        steps = sorted((e["gpu"], e["model"], e["compiled"]) for e in table if e["name"] == "step_s")
        known = ", ".join(_painted(*step) for step in steps)
        raise ConfigError(
            f"no step of {_painted(gpu, model, compiled)} has been measured; those of {known} have, and "
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
    measured = stage_records.newest(root, "generate", ("Placer", "Painter", "Finisher"))
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
    for name in ("decode_s", "clip_s", "gates_s"):
        found[name] = Figure(name=name, value=0, by="root", where=f"{IN_STEP}, with further rounds")
    return found, []


def _measured(name: str, value: float, run_id: str) -> Figure:
    return Figure(name=name, value=value, by="root", where=f"run {run_id}")


def _recipe(root: Root, run_id: str) -> Recipe | None:
    """What a run painted with, from its settings; None where they are not there."""
    for file, path in (("generate", ("config",)), ("nightly", ("config", "generate"))):
        try:
            values: Mapping[str, Any] = json.loads(root.read(f"runs/{run_id}/{file}.config.json"))
            for key in path:
                values = values[key]
            return Recipe.model_validate(values["recipe"])
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, KeyError, TypeError, ValueError):
            continue
    return None
