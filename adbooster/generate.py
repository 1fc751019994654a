"""Samples x cohorts x weights -> creatives: paint K, put the product back, score, keep the best, publish at once."""

import logging
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from adbooster import allowance, gallery, marks, plan, prompting, report, tables
from adbooster.errors import ConfigError, CoverageTooLow
from adbooster.marks import MarkFigures
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.painting import paint
from adbooster.pools import Pool
from adbooster.prompting import PromptFigures, Prompting
from adbooster.publish import publish
from adbooster.recipe import Adapter, Recipe, recipe_id
from adbooster.settings import JobConfig, Uri

log = logging.getLogger(__name__)


class GenerateConfig(JobConfig):
    """Settings of `jobs.generate`."""

    weights: Uri
    """The outpainter: a folder in diffusers layout, local or s3://."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on the weights, in this order."""
    rank_model: Uri
    """The CLIP that scores and ranks: a folder that open_clip saved."""
    mask_model: Uri = ""
    """U2-Net family model (.onnx) for the gates on the product's shape."""
    safety_model: Uri = ""
    """Folder of a StableDiffusionSafetyChecker; empty: pictures are not checked for unsafe content."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where the models run; never chosen by what is there."""
    dtype: str = Field("float16", pattern="^(float32|float16|bfloat16)$")
    """Number format of the outpainter."""
    compiled: bool = False
    """torch.compile the UNet: minutes a placement at the start of every actor, faster steps after."""
    threads: int = Field(1, ge=1)
    """CPU threads a painting actor."""
    paint: Pool = Pool(batch=8)
    """Actors that paint and score; `batch` counts requests, rounded up so that paintings fill whole passes."""
    paint_batch: int = Field(16, ge=1)
    """Paintings in one pass of the network; always filled, so that a picture does not depend on its neighbours."""
    recipe: Recipe = Recipe()
    """What decides the pixels."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    targeting: plan.Targeting = plan.Targeting()
    """Which cohorts a product is painted for."""
    deadline: str = ""
    """When painting stops, and what is complete is published: 06:30 (this machine's time), 06:30 Europe/Berlin, 5h."""
    publish_s: float = Field(60, ge=0)
    """Seconds before the deadline that are kept for publishing."""
    gpu_hours: float | None = Field(None, ge=0)
    """GPU-hours of painting (as in `gpu_s`) after which painting stops."""
    min_coverage: float = Field(0.95, ge=0, le=1)
    """With a smaller share of requests filled nothing is published; older creatives that are still live count."""
    progress_s: float = Field(30, gt=0)
    """Seconds between two lines of progress in the log."""
    gallery: int = Field(300, ge=0)
    """Requests whose creatives the page shows; of these small pictures of all candidates are kept."""
    marks_uri: Uri = ""
    """A file of approvals and rejections that the page exported, or a folder of them; empty: those of earlier nights."""


class GenerateReport(BaseModel):
    """What `jobs.generate` did; counts are requests unless they say otherwise."""

    job: str = "generate"
    run_id: str
    recipe_id: str
    weights_revision: str
    requests: int
    already_live: int
    already_staged: int
    to_paint: int = 0
    painted: int = 0
    rejected: int = 0
    """Requests that got no creative at all."""
    stopped: str | None = None
    """What ended painting early: deadline or gpu_hours; null: nothing did."""
    left: int = 0
    """Requests that the next night paints; what is live in their places stays."""
    left_by_value: dict[str, int] = {}
    """Of these, by class of value: new_product, low_margin, new_place, high_margin."""
    left_uri: str | None = None
    """Parquet file of their ids."""
    fallbacks: int = 0
    fallback_reasons: dict[str, int] = {}
    candidate_rejects: dict[str, int] = {}
    """Candidates that a gate turned down, by word."""
    repainted_duplicates: int = 0
    published: int = 0
    """Creatives added."""
    retired: int = 0
    """Creatives that are no longer live."""
    coverage: float = 0.0
    cohort_shares: dict[str, float] = {}
    prompts: PromptFigures = PromptFigures()
    marks: MarkFigures = MarkFigures()
    uplift: dict[str, report.Uplift] = {}
    creatives_version: int | None
    gallery_uri: str | None = None
    gpu_s: float = 0.0
    gpu_hours_estimate: float | None = None
    """For what is to be painted, from seconds measured before; null where nothing was."""
    estimated_from: str | None = None
    paint_batch: int | None = None
    """Smallest batch painted in; below the setting where memory ran out."""
    seconds: float = 0.0


def generate(config: GenerateConfig) -> GenerateReport:
    """Paint what is not painted yet, then publish the night as one commit of tables/creatives."""
    started = time.monotonic()
    root = Root(config.root_uri)
    revision, recipe = revisions(config)
    base = tables.version(root, "creatives")
    live = tables.read(root, "creatives", version=base)
    writing = {"dry_run": config.dry_run, "tokenizer_path": local_copy(config.weights) / "tokenizer"}
    said, marked = marks.take_in(root, config.marks_uri, live, config.run_id, config.dry_run)
    wanted, written = plan.requests(
        root, config.recipe, recipe, config.prompts, config.targeting, config.rank_model, **writing
    )
    wanted = said.apply(wanted, live, marked)
    earlier = plan.staged(root, config.run_id, recipe)
    to_paint = plan.without(wanted, live, earlier)
    done = GenerateReport(
        run_id=config.run_id,
        recipe_id=recipe,
        weights_revision=revision,
        requests=wanted.num_rows,
        already_live=wanted.num_rows - plan.without(wanted, live).num_rows,
        already_staged=len(set(earlier["request_id"].to_pylist()) & set(wanted["request_id"].to_pylist())),
        to_paint=to_paint.num_rows,
        cohort_shares=plan.cohort_shares(wanted),
        prompts=written,
        marks=marked,
        creatives_version=base,
    )
    _estimate(done, live)
    log.info("%d requests: %d live, %d staged, %d to paint", *_counts(done))
    if not config.dry_run:
        fresh, refused = said.refuse(paint(config, wanted, live, earlier, done))
        emptied = plan.without(refused, fresh)
        marked.left_empty += emptied.num_rows
        wanted = plan.without(wanted, emptied)
        try:
            after = publish(config, wanted, live, fresh, done, said.rejected)
        except CoverageTooLow as e:
            _show(config, root, live, done, started, str(e))
            raise
        marks.leave_empty(root, emptied, said, config.run_id)
        _show(config, root, after, done, started)
    done.seconds = round(time.monotonic() - started, 1)
    return done


def _show(
    config: GenerateConfig, root: Root, live: pa.Table, done: GenerateReport, started: float, why_not: str = ""
) -> None:
    """The page of this run over what is live; `why_not` says why nothing was published."""
    done.seconds = round(time.monotonic() - started, 1)
    gallery.write(root, config.run_id, live, done.model_dump() | {"why_not": why_not}, config.gallery)
    done.gallery_uri = report.write_report(root, config.run_id)


def revisions(config: GenerateConfig) -> tuple[str, str]:
    """(revision of the weights, recipe_id): content hashes of all that decides a picture besides product and cohort."""
    weights = content_hash(local_copy(config.weights))
    models = [f"{content_hash(local_copy(a.uri))} x {a.scale}" for a in config.adapters]
    models += [
        content_hash(local_copy(uri)) if uri else ""
        for uri in (config.rank_model, config.mask_model, config.safety_model)
    ]
    return weights, recipe_id(config.recipe, [weights, *models])


def _counts(done: GenerateReport) -> tuple[int, int, int, int]:
    return done.requests, done.already_live, done.already_staged, done.to_paint


def _estimate(done: GenerateReport, live: pa.Table) -> None:
    """GPU-hours of what is to be painted, at the rate measured on live creatives."""
    first = live.filter(pc.equal(live["rank"], 0))
    same = first.filter(pc.equal(first["recipe_id"], done.recipe_id))
    rows, done.estimated_from = (same, "this recipe") if same.num_rows else (first, "other recipes")
    if not rows.num_rows:
        done.estimated_from = None
        return
    done.gpu_hours_estimate = round(pc.mean(rows["gpu_s"]).as_py() * done.to_paint / 3600, 4)


def check(config: GenerateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: models, recipe, root"""
    from adbooster.outpaint import check_recipe, check_weights

    prompting.check(config.prompts)
    allowance.until(config.deadline, datetime.now().astimezone())
    if config.marks_uri:
        marks.read(config.marks_uri)
    recipe, gates = config.recipe, config.recipe.gates
    if recipe.keep > recipe.candidates:
        raise ConfigError(f"recipe.keep {recipe.keep} is more than recipe.candidates {recipe.candidates}")
    shapes = [n for n in ("max_expansion_share", "max_copy_similarity") if getattr(gates, n) is not None]
    if shapes and not config.mask_model:
        raise ConfigError(f"the gate {shapes[0]} needs --mask-model, a U2-Net .onnx file")
    weights, rank_model = local_copy(config.weights), local_copy(config.rank_model)
    check_weights(weights)
    check_recipe(recipe, weights)
    if not (rank_model / "open_clip_config.json").is_file():
        raise ConfigError(f"the CLIP model {config.rank_model} has no open_clip_config.json")
    others = [local_copy(uri) for uri in (config.mask_model, config.safety_model) if uri]
    for model in [weights, rank_model, *others, *(_adapter(a) for a in config.adapters)]:
        refuse_pickles(model)
    if config.targeting.rule == "table" and not config.targeting.table_uri:
        raise ConfigError("targeting.rule table needs targeting.table_uri")
    Root(config.root_uri).check_writable()


def _adapter(adapter: Adapter) -> Path:
    path = local_copy(adapter.uri)
    if path.suffix != ".safetensors":
        raise ConfigError(f"the adapter {adapter.uri} is not a .safetensors file")
    return path
