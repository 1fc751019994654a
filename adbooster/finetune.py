"""Samples with a scene -> weights: Ray Train teaches an inpainting UNet to leave the product alone and paint the rest."""

import json
import logging
import os
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from pydantic import BaseModel, Field
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from adbooster import examples, latents, tables
from adbooster.checkpoints import check_fits, open_at
from adbooster.errors import ConfigError
from adbooster.inpainting import architecture, check_base
from adbooster.learning import NOT_DECIDING, Learning
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.pools import Pool, preflight
from adbooster.recipe import digest
from adbooster.settings import Uri, code_commit

log = logging.getLogger(__name__)


class FinetuneConfig(Learning):
    """Settings of `jobs.finetune`."""

    samples_version: int | None = Field(None, ge=0)
    """Version of tables/samples to learn from; null: the newest."""
    held_out_share: float = Field(0.15, gt=0, lt=1)
    """Products kept for validation, chosen by a hash of their id."""
    max_failures: int = Field(3, ge=0)
    """Times that Ray Train starts the workers again, from the last checkpoint; preempted nodes do not count."""
    resume_from: Uri = ""
    """Checkpoints of another run (runs/finetune-<name>/checkpoints) to go on from, to train it longer or on more data."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run, for a run that goes on from it."""


class FinetuneReport(BaseModel):
    """What `jobs.finetune` did."""

    job: str = "finetune"
    run_id: str
    weights: str | None
    weights_revision: str | None
    adapter: str | None = None
    """The LoRA alone, as `generate.adapters` takes it; the weights have it merged."""
    reused: bool
    """These settings and data were trained before: the weights are those."""
    samples: int
    held_out: int
    unreadable: int = 0
    """Pictures left out because their photo or mask could not be read."""
    samples_version: int | None = None
    steps: int
    resumed_from_step: int = 0
    loss_before: float | None
    """On held-out pictures, with the same noise and timesteps as `loss_after`."""
    loss_after: float | None
    images_per_s: float | None = None
    """Of all workers together, without starting, looking and saving."""
    run_uri: str | None = None
    """Where curves (tensorboard/), paintings (panel/) and checkpoints are."""
    seconds: float


def finetune(config: FinetuneConfig) -> FinetuneReport:
    """Train on the scenes of tables/samples; the same data and settings give back the weights they gave before."""
    started = time.monotonic()
    root = Root(config.root_uri)
    version = tables.version(root, "samples") if config.samples_version is None else config.samples_version
    rows = examples.scenic_samples(root, config.samples_version)
    training, held_out = examples.split(rows, config.held_out_share)
    if not training.num_rows or not held_out.num_rows:
        raise ConfigError(
            f"tables/samples has {training.num_rows} pictures with a scene to train on and {held_out.num_rows} to validate; "
            "both need at least one (lifestyle pictures in the feed give them)"
        )
    name = run_name(config, rows)
    folder, known = f"runs/finetune-{name}", f"runs/finetune-{name}.json"
    done = FinetuneReport(
        run_id=config.run_id,
        weights=None,
        weights_revision=None,
        reused=root.exists(known),
        samples=training.num_rows,
        held_out=held_out.num_rows,
        samples_version=version,
        steps=config.steps,
        loss_before=None,
        loss_after=None,
        run_uri=f"{root.uri}/{folder}",
        seconds=0.0,
    )
    if not done.reused and not config.dry_run:
        _check_cluster(config)
        rows = _surveyed(config, root, training, held_out)
        told = {
            **{"config": config, "name": name, "folder": folder, "result": known, "resume_from": config.resume_from},
            **{"keep_checkpoint": config.keep_checkpoint, "card": _card(config, version)},
            **{"architecture": architecture(local_copy(config.base), config.lora), "latents": ""},
        }
        _train(config, root, rows, told)
    if root.exists(known):
        _tell(done, json.loads(root.read(known)), root, config)
    done.seconds = round(time.monotonic() - started, 1)
    return done


def _tell(done: FinetuneReport, figures: dict, root: Root, config: FinetuneConfig) -> None:
    done.weights_revision = figures["revision"]
    done.weights = f"{root.uri}/weights/{figures['revision']}"
    done.adapter = f"{done.weights}/adapter.safetensors" if config.lora.rank else None
    done.loss_before, done.loss_after = (round(figures[k], 5) for k in ("loss_before", "loss_after"))
    done.resumed_from_step, done.unreadable = figures["resumed_from_step"], figures["unreadable"]
    done.images_per_s = figures["images_per_s"]


def run_name(config: FinetuneConfig, rows: pa.Table) -> str:
    """Hash of all that decides the weights, so that a finished run of this name is truly the same."""
    settings = config.model_dump(mode="json", exclude=NOT_DECIDING)
    settings["latents"].pop("encode")
    mark = open_at(config.resume_from).latest() if config.resume_from else None
    settings["resume_from"] = mark and mark.model_dump(mode="json")
    data = json.dumps(rows.to_pydict(), sort_keys=True)
    return digest(json.dumps(settings, sort_keys=True), content_hash(local_copy(config.base)), data)[:16]


def _card(config: FinetuneConfig, version: int | None) -> dict:
    return {
        "parent": content_hash(local_copy(config.base)),
        "samples_version": version,
        "settings": config.model_dump(mode="json", exclude={"run_id", "dry_run"}),
        "git_commit": code_commit(),
    }


def _surveyed(config: FinetuneConfig, root: Root, training: pa.Table, held_out: pa.Table) -> pa.Table:
    """Both parts with the sizes of their photos, marked `held_out`; what cannot be read is left out."""
    parts = []
    for part, held in ((training, False), (held_out, True)):
        found = examples.survey(root, part, config.place)
        found = found.filter(pc.is_null(found["reject"]))
        if not found.num_rows:
            raise ConfigError(
                f"not one of the {part.num_rows} pictures to {'validate' if held else 'train'} on has a mask that can be read"
            )
        parts.append(found.append_column("held_out", pa.array([held] * found.num_rows)))
    return pa.concat_tables(parts)


def _train(config: FinetuneConfig, root: Root, rows: pa.Table, told: dict) -> None:
    if config.latents.placements:
        training = rows.filter(pc.invert(rows["held_out"]))
        told["latents"] = latents.precompute_latents(config, examples.Plan(training, config))
        there = latents.encoded(root, told["latents"], training, config.latents.placements)
        rows = pa.concat_tables([there, rows.filter(rows["held_out"])])
    buffer = pa.BufferOutputStream()
    pap.write_table(rows, buffer)
    root.write(f"{told['folder']}/data.parquet", buffer.getvalue().to_pybytes())
    from adbooster.training import train_worker

    # Nodes that an autoscaler has yet to start take minutes, not the minute that is Ray Train's default.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=told,
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
        run_config=RunConfig(
            name=f"{told['name']}-{config.run_id}",
            storage_path=root.path(f"{told['folder']}/ray"),
            storage_filesystem=root.arrow(),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    trainer.fit()


def _check_cluster(config: FinetuneConfig) -> None:
    """raises ConfigError if the cluster could never hold the workers and the actors that feed them"""
    gpus = 1.0 if config.device == "cuda" else 0.0
    if not config.workers:
        import torch

        if gpus and not torch.cuda.is_available():
            raise ConfigError("fine-tuning asks for cuda in this process, which has no GPU; workers: 1 would be right")
        return
    preflight({"train": Pool(actors=config.workers, cpus=0, gpus=gpus)})
    pools = {
        "train": Pool(actors=config.workers, gpus=gpus),
        "place": Pool(actors=config.workers * config.place.actors, cpus=config.place.cpus, gpus=config.place.gpus),
    }
    preflight(pools)
    if config.latents.placements:
        preflight({"encode": config.latents.encode, "place": config.place})


def check(config: FinetuneConfig) -> None:
    """raises ConfigError for what can be known before a worker starts: weights, settings, the run to go on from, root"""
    from adbooster import tracking

    base = local_copy(config.base)
    check_base(base)
    refuse_pickles(base)
    tracking.check(config.mlflow_uri)
    low, high = config.product_scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"product_scale {low}, {high} should be two shares of 0 to 1, the lower first")
    if config.size_px % 8:
        raise ConfigError(f"size_px {config.size_px} should be a multiple of 8")
    if config.resume_from:
        check_fits(open_at(config.resume_from).latest(), architecture(base, config.lora), config.resume_from)
    if config.device == "cuda" and config.latents.placements and not config.latents.encode.gpus:
        raise ConfigError("latents.encode.gpus is 0 and device is cuda; 1 would be right")
    Root(config.root_uri).check_writable()
