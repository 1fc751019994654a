"""Creatives painted to be compared and never published: the same panel under other weights or prompts."""

import json
import logging
import time
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
from pydantic import Field

from adbooster import eyes, finish, images, looks, plan, prompting, schema
from adbooster.errors import ConfigError
from adbooster.eyes import Eyes, Judging, revision
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.outpaint import Painting, check_recipe, check_weights
from adbooster.painter import Painter, Request
from adbooster.pools import Pool, dataset, preflight, stage_parts, through
from adbooster.prompting import PromptFigures, Prompting
from adbooster.recipe import Adapter, Gates, Recipe, digest, recipe_id, seed_of
from adbooster.settings import Config, Uri

log = logging.getLogger(__name__)
LIKE_GENERATE = ("rank_model", "mask_model", "device", "dtype", "compiled", "threads", "paint", "paint_batch", "recipe")


class Trial(Config):
    """One way to make creatives."""

    name: str = Field(min_length=1, max_length=100)
    """What tables and pages call it: `fine-tuned, qc`."""
    weights: Uri
    """The outpainter: a folder in diffusers layout."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on the weights."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text: `style: qc` or `style: llm`."""


class Panel(Config):
    """The products and cohorts of a comparison: always the same while they are in the tables."""

    products: int = Field(12, ge=1)
    """Products, chosen by a hash of their id; those with a picture in a scene first."""
    product_ids: tuple[str, ...] = ()
    """These products instead."""
    cohorts: int = Field(0, ge=0)
    """Cohorts, chosen by a hash of their id; 0: all."""
    cohort_ids: tuple[str, ...] = ()
    """These cohorts instead."""

    def pairs(self, products: dict[str, dict], cohorts: dict[str, dict]) -> list[tuple[str, str]]:
        """(product_id, cohort_id) of the panel, of what is there."""
        scenic = {name for name, product in products.items() if product["contextual_uris"]}
        order = sorted(products, key=lambda p: (p not in scenic, digest("panel", p)))
        chosen = [p for p in self.product_ids if p in products] or order[: self.products]
        by_hash = sorted(cohorts, key=lambda c: digest("panel", c))
        texts = [c for c in self.cohort_ids if c in cohorts] or by_hash[: self.cohorts or None]
        return [(p, c) for p in sorted(chosen) for c in sorted(texts)]


class Trying(Judging):
    """How trials are painted; the same for all that are compared. In a night's file this stands in `generate`."""

    inherits: ClassVar = {"generate": {name: name for name in LIKE_GENERATE}}
    dtype: str = Field("float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    compiled: bool = False
    """torch.compile the UNet."""
    paint: Pool = Pool(batch=8)
    """Actors that paint, score and measure."""
    paint_batch: int = Field(16, ge=1)
    """Paintings in one pass of the network."""
    recipe: Recipe = Recipe()
    """What decides the pixels. Trials publish nothing: gates, rounds and `keep` are left out of account, and what the
    gates look for is measured instead."""
    panel: Panel = Panel()
    """The products and cohorts that are painted."""


class Tried(Trying):
    """One trial's settings, as the stage is told them."""

    trial: Trial
    weights: Uri
    adapters: tuple[Adapter, ...]
    safety_model: str = ""


class Trialist(Painter):
    """Paints K candidates a request, scores them all as finished pictures, and measures the one that `rank` prefers."""

    def __init__(self, root: Root, tried: Tried):
        super().__init__(root, tried.model_copy(update={"mask_model": ""}), "", "")
        self.eyes = Eyes(root, tried, self.ranker)

    def __call__(self, rows: pa.Table) -> pa.Table:
        started = time.monotonic()
        asked = rows.to_pylist()
        places = [self._settings(Request(row, np.zeros(0), [], 0)) for row in asked]
        painted = self.outpainter.paint(
            [
                Painting(place.condition, row["prompt"], row["negative_prompt"], seed_of(_noise(row, self.recipe), i))
                for row, some in zip(asked, places, strict=True)
                for i, place in enumerate(some)
            ]
        )
        k = self.recipe.candidates
        each = [painted[i * k : (i + 1) * k] for i in range(len(asked))]
        found = [self._look(*one) for one in zip(asked, places, each, strict=True)]
        spent = (time.monotonic() - started) / len(asked)
        return pa.Table.from_pylist([row | {"gpu_s": spent} for row in found], schema.LOOKS)

    def _look(self, row: dict, places: list, painted: np.ndarray) -> dict:
        cutout, size = self.cutout(row["photo_uri"], row["mask_uri"]), self.recipe.size(row["placement"])
        pictures = [
            finish.finish(p, cutout, place.box, size, self.recipe.shadow)
            for p, place in zip(painted, places, strict=True)
        ]
        found = self.eyes.scores(pictures, row["text"]) | self.eyes.baselines(row)
        best = found["best"]
        file = finish.encode(pictures[best], cutout, places[best].box, self.recipe)
        shared = {name: row[name] for name in schema.LOOKS.names if name in row}
        found |= shared | self.eyes.figures(images.decode(file.content), cutout, places[best].box, row["text"])
        own = max(found[f"{kind}_rank"] for kind in ("neutral", "contextual") if found[f"{kind}_rank"] is not None)
        beaten = found["rank_scores"][best] <= own
        return found | {"fallback": beaten, "fallback_reason": "below_original" if beaten else None}


def _noise(row: dict, recipe: Recipe) -> str:
    """Names the seeds: the same in every trial, so that a difference is that of weights and prompts."""
    return digest(row["product_id"], row["cohort_id"], row["placement"], str(recipe.seed))


def to_try(root: Root, config: Trying, trial: Trial, products: dict, cohorts: dict) -> tuple[pa.Table, PromptFigures]:
    """The requests of a trial on the panel (schema.TO_TRY), and where their prompts came from.

    products, cohorts  as `evaluator.own_pictures` and `evaluator.cohorts` give them
    """
    pairs = config.panel.pairs(products, cohorts)
    if not pairs:
        raise ConfigError(f"{config.root_uri} has no usable product or no cohort to try weights on; run jobs.prepare")
    listed = f"runs/{config.run_id}/panel.parquet"
    buffer = pa.BufferOutputStream()
    columns = zip(*pairs, strict=True)
    pap.write_table(pa.table(dict(zip(("product_id", "cohort_id"), map(list, columns), strict=True))), buffer)
    root.write(listed, buffer.getvalue().to_pybytes())
    painting = config.recipe.model_copy(update={"gates": Gates(), "keep": 1, "max_rounds": 1})
    models = [content_hash(local_copy(trial.weights))]
    models += [f"{content_hash(local_copy(a.uri))} x {a.scale}" for a in trial.adapters]
    targeting = plan.Targeting(rule="table", table_uri=f"{root.uri}/{listed}")
    tokenizer = {"tokenizer_path": local_copy(trial.weights) / "tokenizer"}
    asked, figures = plan.requests(
        root, painting, recipe_id(painting, models), trial.prompts, targeting, config.rank_model, **tokenizer
    )
    seen_by = revision(config)
    pictures = [products[p] for p in asked["product_id"].to_pylist()]
    own = [json.dumps([p["neutral_uris"], p["contextual_uris"]]) for p in pictures]
    return schema.extend(
        asked,
        schema.TO_TRY,
        look_id=[digest(r, o, seen_by) for r, o in zip(asked["request_id"].to_pylist(), own, strict=True)],
        neutral_uris=[p["neutral_uris"] for p in pictures],
        contextual_uris=[p["contextual_uris"] for p in pictures],
    ), figures


def tried(root: Root, config: Trying, trial: Trial, rows: pa.Table) -> pa.Table:
    """The looks (schema.LOOKS) of a trial's requests: those taken before, and the rest painted now."""
    settings = {name: getattr(config, name) for name in Trying.model_fields}
    told = Tried(**settings, trial=trial, weights=trial.weights, adapters=trial.adapters)

    def take(left: pa.Table) -> None:
        preflight({"paint": config.paint})
        log.info("%s: painting %d of %d requests", trial.name, left.num_rows, rows.num_rows)
        ds = through(dataset(left, config.paint.batch), Trialist, config.paint, schema.LOOKS, root=root, tried=told)
        stage_parts(ds, root, looks.folder(config.run_id))

    return looks.looks(root, config.run_id, rows, take)


def check(config: Trying, trials: Iterable[Trial]) -> None:
    """raises ConfigError for weights, recipe or prompts that cannot work"""
    eyes.check(config)
    for trial in trials:
        weights = local_copy(trial.weights)
        check_weights(weights)
        check_recipe(config.recipe, weights)
        for model in (weights, *(local_copy(a.uri) for a in trial.adapters)):
            refuse_pickles(model)
        prompting.check(trial.prompts)
