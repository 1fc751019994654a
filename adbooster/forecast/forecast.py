"""From a workload and measured figures to what its nights take."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from adbooster.contracts.recipe import Halving
from adbooster.forecast.figures import NAMES, Figure
from adbooster.forecast.workload import Workload

NIGHTS = 365
PART_ROWS = 4  # rows of a staged part, as of the presets' finish.batch
PER_PICTURE = {"GET": 2, "HEAD": 4, "LIST": 2, "PUT": 2}
"""Requests that S3 gets for a photo: stored, read for the networks and for its mask, the mask stored."""
PER_PRODUCT = {"GET": 2, "HEAD": 2}
"""For a product to be placed: photo and mask; PER_OWN_PICTURE more for each of its pictures, which creatives have to beat."""
PER_OWN_PICTURE = {"GET": 1, "HEAD": 1}
PER_CREATIVE = {"GET": 2, "HEAD": 3, "LIST": 1, "PUT": 1}
"""For a creative to be finished: photo and mask at most, and the file, which is looked for before it is stored."""


class Prices(BaseModel):
    """What a GPU costs an hour, how long a night is, and how many days of earlier versions are kept."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    gpu_hour: float = Field(ge=0)
    hours: float = Field(gt=0)
    retention_days: float = Field(ge=0)


class Night(BaseModel):
    """What one night takes. Hours are of all GPUs or cores together."""

    requests_painted: float
    pictures: float
    """Photos that are fetched and masked."""
    gpu_hours: float
    euros: float
    core_hours: dict[str, float | None]
    """By stage, null where it is not measured; planning is one core's."""
    gpus: int
    """That are needed to end within the hours."""
    cores: dict[str, int | None]
    """The same, by stage."""
    storage_requests: dict[str, float]


class Storage(BaseModel):
    """Gigabytes (10^9 bytes); of files null where the bytes of a creative are not measured, without photos where theirs are not."""

    live: float | None
    """Files of what is live."""
    a_night: float | None
    """Files that a night adds."""
    kept: float | None
    """Files of what is live and of what was live within the retention."""
    tables: float
    """tables/creatives, at most: a MERGE may write every file of it anew, and earlier ones stay for the retention."""


class Variation(BaseModel):
    """Something set otherwise, and GPU-hours and euros of a night over those as set."""

    what: str
    gpu_hours: float
    euros: float


class Forecast(BaseModel):
    """What the nights of a shop take; what nobody has measured is in no sum."""

    requests: float
    first: Night
    """The night that paints everything."""
    night: Night
    year_gpu_hours: float
    """Of 365 nights, the first one aside."""
    year_euros: float
    storage: Storage
    variations: list[Variation]
    figures: list[Figure]
    not_measured: dict[str, str]
    """What the sums lack, by the figure's name."""
    notes: list[str] = []


def forecast(workload: Workload, prices: Prices, figures: Mapping[str, Figure], notes: Iterable[str] = ()) -> Forecast:
    night = _night(workload, prices, figures, workload.churn)
    used = {name: figures[name] for name in NAMES if name in figures}
    return Forecast(
        requests=workload.requests,
        first=_night(workload, prices, figures, 1.0),
        night=night,
        year_gpu_hours=night.gpu_hours * NIGHTS,
        year_euros=night.euros * NIGHTS,
        storage=_storage(workload, prices, figures),
        variations=[_variation(what, other, workload, prices, figures) for what, other in _others(workload).items()],
        figures=list(used.values()),
        not_measured={name: what for name, what in NAMES.items() if name not in figures},
        notes=list(notes),
    )


def _night(workload: Workload, prices: Prices, figures: Mapping[str, Figure], share: float) -> Night:
    """A night in which this share of the products is new or changed."""
    f = _values(figures)
    painted, pictures = workload.requests * share, workload.products * workload.pictures * share
    creatives = painted * workload.kept
    of_network = workload.network_steps * f["step_s"] + workload.decoded * f["decode_s"]
    of_judging = workload.scored * f["clip_s"] + workload.finalists * f["gates_s"]
    gpu_s = painted * workload.rounds * (of_network + of_judging) + pictures * (f["mask_s"] + f["caption_s"])
    rows: dict[str, float] = {"place": painted, "finish": creatives, "plan": workload.requests}
    rows |= dict.fromkeys(("fetch", "shrink", "refine"), pictures)
    core_hours = {name: n * f[f"{name}_s"] / 3600 if f"{name}_s" in figures else None for name, n in rows.items()}
    times = {"picture": pictures, "product": workload.products * share, "creative": creatives}
    sent = {
        kind: times["picture"] * (PER_PICTURE.get(kind, 0) + PER_OWN_PICTURE.get(kind, 0))
        + times["product"] * PER_PRODUCT.get(kind, 0)
        + times["creative"] * PER_CREATIVE.get(kind, 0)
        for kind in ("GET", "HEAD", "LIST", "PUT")
    }
    sent["PUT"] += math.ceil(creatives / PART_ROWS)
    return Night(
        requests_painted=painted,
        pictures=pictures,
        gpu_hours=gpu_s / 3600,
        euros=gpu_s / 3600 * prices.gpu_hour,
        core_hours=core_hours,
        gpus=math.ceil(gpu_s / 3600 / prices.hours),
        cores={name: None if h is None else math.ceil(h / prices.hours) for name, h in core_hours.items()},
        storage_requests=sent,
    )


def _storage(workload: Workload, prices: Prices, figures: Mapping[str, Figure]) -> Storage:
    values = _values(figures)
    photos = workload.products * workload.pictures * values["photo_bytes"] / 1e9
    creatives = workload.requests * workload.kept
    files = creatives * values["creative_bytes"] / 1e9 + photos
    a_night = files * workload.churn
    known = "creative_bytes" in figures
    return Storage(
        live=files if known else None,
        a_night=a_night if known else None,
        kept=files + a_night * prices.retention_days if known else None,
        tables=creatives * values["row_bytes"] / 1e9 * (1 + prices.retention_days),
    )


def _values(figures: Mapping[str, Figure]) -> dict[str, float]:
    """All figures by name; 0 where nobody has measured."""
    return {name: figures[name].value if name in figures else 0.0 for name in NAMES}


def _others(workload: Workload) -> dict[str, Workload]:
    """The same shop with one thing set otherwise, by what that is."""
    recipe, n = workload.recipe, workload.cohorts_a_product
    k, steps = recipe.candidates, recipe.num_inference_steps
    recipes: dict[str, dict[str, Any]] = {
        f"K = {other}": {"candidates": other} for other in (max(1, k // 2), 2 * k) if other != k
    }
    recipes |= {
        f"{other} steps": {"num_inference_steps": other} for other in (max(1, steps // 2), 2 * steps) if other != steps
    }
    if not recipe.halving.at and k > 1:
        recipes["halving at 0.4, keep 0.5"] = {"halving": Halving(at=0.4, keep=0.5)}
    if recipe.guidance_scale > 1:
        recipes["no guidance"] = {"guidance_scale": 1.0}
    found = {
        what: workload.model_copy(update={"recipe": recipe.model_copy(update=update)})
        for what, update in recipes.items()
    }
    for other in (n / 2, min(2 * n, workload.cohorts)):
        if other != n:
            found[f"{other:g} cohorts a product"] = workload.model_copy(update={"cohorts_a_product": other})
    return found


def _variation(
    what: str, other: Workload, as_set: Workload, prices: Prices, figures: Mapping[str, Figure]
) -> Variation:
    """Ratios over a night that paints everything, so that a shop without churn has them too."""
    changed, before = (_night(workload, prices, figures, 1.0) for workload in (other, as_set))
    hours = changed.gpu_hours / before.gpu_hours if before.gpu_hours else 1.0
    return Variation(what=what, gpu_hours=hours, euros=changed.euros / before.euros if before.euros else hours)
