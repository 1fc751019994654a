"""`adbooster plan`: what a night and a year of some size take, from measured figures."""

import argparse
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console, RenderableType
from rich.table import Table

from adbooster.cli.load import load
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.contracts.text import shown
from adbooster.forecast.figures import NAMES, gather
from adbooster.forecast.forecast import NIGHTS, Forecast, Prices, forecast
from adbooster.forecast.workload import Workload, cohorts_a_product
from adbooster.generate.config import GenerateConfig
from adbooster.storage.objects import Root

RECIPE = {"candidates": "candidates", "steps": "num_inference_steps", "guidance": "guidance_scale", "keep": "keep"}
RECIPE |= {"format": "image_format"}
FLAGS = {setting: flag for flag, setting in RECIPE.items()} | {"gpu_hour": "price", "retention_days": "retention"}
BY = {"project": "measured by this project", "others": "published by others", "root": "measured below the root"}
BY |= {"you": "given"}


def add(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--products", type=float, required=True, help="products with a photo; 1e6 is a million")
    parser.add_argument("--cohorts", type=float, required=True, help="cohorts of users")
    parser.add_argument("--churn", type=float, required=True, help="share of the products that change a night, 0-1")
    parser.add_argument(
        "--gpu", required=True, help="h100 or a100; a name of your own for the one that the root's runs have used"
    )
    parser.add_argument("--price", type=float, required=True, help="euros a GPU-hour, with the cores beside it")
    parser.add_argument("--hours", type=float, default=6, help="that a night may take (default 6)")
    parser.add_argument("--model", help="what paints: sd15 or sdxl (default: as the root's runs, else sd15)")
    parser.add_argument("--compiled", action="store_true", default=None, help="torch.compile is on")
    parser.add_argument("--candidates", type=int, metavar="K", help="paintings a request (default 4)")
    parser.add_argument("--steps", type=int, metavar="N", help="sampler steps (default 20)")
    parser.add_argument("--guidance", type=float, metavar="G", help="1 is none and half the cost (default 5)")
    parser.add_argument("--keep", type=int, help="creatives a request (default 1)")
    parser.add_argument("--format", help="webp_lossless (default), jpeg, png or webp")
    parser.add_argument("--targeting", help="all (default), top_n:5, or table:3.2 (cohorts a product on average)")
    parser.add_argument("--placements", type=int, help="sizes that a pair is painted in (default 1)")
    parser.add_argument("--pictures", type=float, default=1, help="photos a product (default 1)")
    parser.add_argument(
        "--rounds", type=float, default=1, help="rounds that gates cause a request on average (default 1)"
    )
    parser.add_argument("--retention", type=float, default=7, metavar="DAYS", help="as of vacuum (default 7)")
    parser.add_argument(
        "--measured", action="append", default=[], metavar="NAME=NUMBER", help="a figure of your own: clip_s=0.004"
    )
    parser.add_argument("--config", help="settings of generate: recipe, targeting and root are taken from there")


def plan(below: Root | None, arguments: argparse.Namespace) -> None:
    """Print the forecast, from what runs below this root have measured, or below that of the settings if some are named.

    raises  ConfigError for what is no size, price, GPU or figure
    """
    settings = _settings(arguments)
    recipe = _recipe(arguments, settings)
    targeting = arguments.targeting or _targeting(settings)
    cohorts = _whole("cohorts", arguments.cohorts)
    workload = _checked(
        Workload,
        products=_whole("products", arguments.products),
        cohorts=cohorts,
        churn=arguments.churn,
        cohorts_a_product=cohorts_a_product(targeting, cohorts),
        placements=len(recipe.placements) if arguments.placements is None else arguments.placements,
        pictures=arguments.pictures,
        rounds=arguments.rounds,
        recipe=recipe,
    )
    prices = _checked(Prices, gpu_hour=arguments.price, hours=arguments.hours, retention_days=arguments.retention)
    compiled = settings.compiled if settings and arguments.compiled is None else arguments.compiled
    root = Root(settings.root_uri) if settings else below
    figures, notes = gather(arguments.gpu, arguments.model, compiled, recipe.image_format, root, arguments.measured)
    if recipe.cache_every > 1:
        notes.append(f"cache_every {recipe.cache_every} saves more than nothing, but is not in the sums")
    found = forecast(workload, prices, figures, notes)
    if arguments.json:
        return print(found.model_dump_json())
    console = Console(width=150)
    for part in _parts(found, workload, prices, arguments.gpu):
        console.print(part, markup=False, highlight=False)


def _settings(arguments: argparse.Namespace) -> GenerateConfig | None:
    if not arguments.config:
        return None
    flags = ["--root-uri", arguments.root_uri] if arguments.root_uri else []
    flags += ["--catalog", arguments.catalog] if arguments.catalog else []
    return load(GenerateConfig, ["--config", arguments.config, *flags])


def _recipe(arguments: argparse.Namespace, settings: GenerateConfig | None) -> Recipe:
    given = {name: getattr(arguments, flag) for flag, name in RECIPE.items() if getattr(arguments, flag) is not None}
    return _checked(Recipe, **(settings.recipe if settings else Recipe()).model_dump() | given)


def _targeting(settings: GenerateConfig | None) -> str:
    """As the option says it.

    raises  ConfigError for a table, whose pairs are not counted here
    """
    if settings is None or settings.targeting.rule == "all":
        return "all"
    if settings.targeting.rule == "table":
        raise ConfigError(
            "the settings target by a table: give --targeting table:3.2 with its cohorts a product on average"
        )
    return f"top_n:{settings.targeting.n}"


def _whole(flag: str, value: float) -> int:
    if not value.is_integer():
        raise ConfigError(f"--{flag} {value:g} should be a whole number")
    return int(value)


def _checked(kind: type[BaseModel], **values: Any) -> Any:
    """The model, or one sentence that names the option."""
    try:
        return kind(**values)
    except ValidationError as e:
        first = e.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(f"--{FLAGS.get(name, name)} {shown(first['input'])}: {first['msg']}") from e


def _parts(found: Forecast, workload: Workload, prices: Prices, gpu: str) -> Iterator[RenderableType]:
    recipe = workload.recipe
    yield (
        f"{workload.products:,} products x {workload.cohorts_a_product:g} cohorts x {workload.placements} "
        f"placement{'s' if workload.placements > 1 else ''}: "
        f"{found.requests:,.0f} requests; K {recipe.candidates}, {recipe.num_inference_steps} steps, guidance "
        f"{recipe.guidance_scale:g}, {workload.kept} kept, {recipe.image_format}, {workload.churn:.1%} a night"
    )
    yield _nights(found, prices, gpu)
    yield (
        "Requests are those for files, if every creative is finished from a photo that is read anew; tables and listings of "
        "runs come on top. Machines' start, and GPUs that wait, are in no sum."
    )
    yield _storage(found, prices)
    table = Table("what if", "GPU-hours", "euros")
    for other in found.variations:
        table.add_row(other.what, f"x {other.gpu_hours:.2f}", f"x {other.euros:.2f}")
    yield table
    table = Table("figure", "value", "of", "measured by", "where")
    for figure in found.figures:
        table.add_row(figure.name, f"{figure.value:.4g}", NAMES[figure.name], BY[figure.by], figure.where)
    yield table
    yield "not measured, and in no sum (--measured NAME=NUMBER gives your own):"
    for name, what in found.not_measured.items():
        yield f"  {name}: {what}"
    for note in found.notes:
        yield f"note: {note}"


def _nights(found: Forecast, prices: Prices, gpu: str) -> Table:
    nights = found.first, found.night
    table = Table("", "first night, all", "a night", f"a year of {NIGHTS} nights")
    lacks = any(NAMES[name].startswith("GPU") for name in found.not_measured)
    per_year: dict[str, list[float | None]] = {
        "requests painted": [n.requests_painted for n in nights],
        f"GPU-hours, {gpu}{', at least' if lacks else ''}": [n.gpu_hours for n in nights],
        f"euros, at {prices.gpu_hour:g} a GPU-hour": [n.euros for n in nights],
        f"GPUs for {prices.hours:g} h": [n.gpus for n in nights],
    }
    for stage in found.night.core_hours:
        per_year[f"core-hours: {stage}"] = [n.core_hours[stage] for n in nights]
        per_year[f"cores for {prices.hours:g} h: {stage}"] = [n.cores[stage] for n in nights]
    for kind in found.night.storage_requests:
        per_year[f"{kind} of files"] = [n.storage_requests[kind] for n in nights]
    for name, values in per_year.items():
        if None in values:
            if name.startswith("core-hours"):
                table.add_row(name, "not measured")
            continue
        first, each = (v or 0 for v in values)
        a_year = "" if " for " in name else _number(each * NIGHTS)
        table.add_row(name, _number(first), _number(each), a_year)
    return table


def _storage(found: Forecast, prices: Prices) -> Table:
    table = Table("stored, GB", "")
    table.add_row("files of what is live", _number(found.storage.live))
    table.add_row("files that a night adds", _number(found.storage.a_night))
    table.add_row(f"files kept, with {prices.retention_days:g} days of retention", _number(found.storage.kept))
    table.add_row("tables/creatives with its retention, at most", _number(found.storage.tables))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"
