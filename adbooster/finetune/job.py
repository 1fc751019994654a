"""Samples with a scene, or pairs of which one is preferred -> weights: Ray Train teaches an inpainting UNet to paint round products."""

import json
import logging
import os
import time
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Pool, code_commit
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import preflight
from adbooster.finetune import examples, latent_cache, preference
from adbooster.finetune.checkpoints import open_at
from adbooster.finetune.config import (
    ADAPTER_FILE,
    NOT_DECIDING,
    OF_THE_LOSS,
    FinetuneConfig,
    FinetuneReport,
    Preference,
    TrainingRun,
)
from adbooster.models.files import architecture
from adbooster.prompts.templates import prompt_qc
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
PRIOR_TEXTS = 256  # of the cohorts, chosen by their hash
_NO_WEIGHTS: dict[str, Any] = dict.fromkeys(("weights", "weights_revision", "loss_before", "loss_after"))


def finetune(config: FinetuneConfig) -> FinetuneReport:
    """Train on the scenes of tables/samples, or on preferences; the same data and settings give back the weights they gave before."""
    started = time.monotonic()
    root = Root(config.root_uri)
    version, rows = _preferences(config, root) if config.preference.beta else _scenes(config, root)
    training, held_out = examples.split(rows, config.held_out_share)
    if not training.num_rows or not held_out.num_rows:
        what = "pairs" if config.preference.beta else "pictures with a scene"
        raise ConfigError(
            f"{root.uri} has {training.num_rows} {what} to train on and {held_out.num_rows} to validate, of other products; "
            "both need at least one"
        )
    config = _with_prior_texts(config, root)
    name = run_name(config, rows)
    folder, known = f"runs/finetune-{name}", f"runs/finetune-{name}.json"
    reused = root.exists(known)
    if not reused and not config.dry_run:
        _check_cluster(config)
        learned = _surveyed(config, root, training, held_out)
        run = TrainingRun(
            config=config,
            name=name,
            folder=folder,
            result=known,
            resume_from=config.resume_from,
            keep_checkpoint=config.keep_checkpoint,
            architecture=architecture(local_copy(config.base), config.lora.rank, config.lora.targets),
            card=_card(config, version, rows),
        )
        _train(config, root, learned, run)
    results = _results(config, root, json.loads(root.read(known))) if root.exists(known) else _NO_WEIGHTS
    return FinetuneReport(
        run_id=config.run_id,
        reused=reused,
        samples=training.num_rows,
        held_out=held_out.num_rows,
        pairs=_sources(rows),
        samples_version=version,
        steps=config.steps,
        run_uri=f"{root.uri}/{folder}",
        seconds=round(time.monotonic() - started, 1),
        **results,
    )


def _scenes(config: FinetuneConfig, root: Root) -> tuple[int | None, pa.Table]:
    """The pictures with a scene, and the version of tables/samples that they are of."""
    version = tables.version(root, "samples") if config.samples_version is None else config.samples_version
    return version, examples.scenic_samples(root, config.samples_version)


def _preferences(config: FinetuneConfig, root: Root) -> tuple[None, pa.Table]:
    """All pairs by their ids; a dry run paints none for a cold start.

    raises ConfigError if there are fewer than are learned from
    """
    pairs = preference.known_pairs(root, config)
    if config.preference.cold_start.by:
        if config.dry_run:
            return None, pairs
        pairs = preference.united([pairs, examples.cold_start_pairs(root, config)])
    preference.check_enough(pairs, config.preference)
    return None, pairs


def _sources(rows: pa.Table) -> dict[str, int]:
    """Pairs by where they come from; none of pictures."""
    return dict(sorted(schema.counted(rows["source"]).items())) if "source" in rows.column_names else {}


def _results(config: FinetuneConfig, root: Root, figures: dict[str, Any]) -> dict[str, Any]:
    """Of a finished run's figures, as fields of the report."""
    weights = root.address(f"weights/{figures['revision']}")
    return {
        "weights": weights,
        "weights_revision": figures["revision"],
        "adapter": f"{weights}/{ADAPTER_FILE}" if config.lora.rank else None,
        "loss_before": round(figures["loss_before"], 5),
        "loss_after": round(figures["loss_after"], 5),
        **{n: round(figures[n], 4) for n in ("accuracy_before", "accuracy_after") if n in figures},
        **{name: figures[name] for name in ("resumed_from_step", "unreadable", "images_per_s")},
    }


def run_name(config: FinetuneConfig, rows: pa.Table) -> str:
    """Hash of all that decides the weights, so that a finished run of this name is truly the same."""
    # How pairs are made shows in the pairs.
    config = config.model_copy(update={"preference": Preference(beta=config.preference.beta)})
    settings = config.model_dump(mode="json", exclude=NOT_DECIDING)
    settings["latents"].pop("encode")
    for later in OF_THE_LOSS:
        if getattr(config, later) == FinetuneConfig.model_fields[later].default:
            settings.pop(later)
    mark = open_at(config.resume_from).latest() if config.resume_from else None
    settings["resume_from"] = mark and mark.model_dump(mode="json")
    data = json.dumps(rows.to_pydict(), sort_keys=True)
    return digest(json.dumps(settings, sort_keys=True), content_hash(local_copy(config.base)), data)[:16]


def _with_prior_texts(config: FinetuneConfig, root: Root) -> FinetuneConfig:
    """The settings, with the texts of the cohorts where the prior needs some and none are given."""
    if not config.prior or config.prior_texts:
        return config
    cohorts = tables.read(root, "cohorts", ["query", "context"]).to_pylist()
    texts = sorted({prompt_qc("", row["query"] or "", row["context"] or "") for row in cohorts})
    if not texts:
        raise ConfigError(
            "prior asks for texts of the cohorts and tables/cohorts has none; prior_texts or prior 0 would be right"
        )
    return config.model_copy(update={"prior_texts": tuple(sorted(texts, key=digest)[:PRIOR_TEXTS])})


def _card(config: FinetuneConfig, version: int | None, rows: pa.Table) -> dict:
    learned = {"kind": "preference", "pairs": _sources(rows)} if config.preference.beta else {"kind": "scenes"}
    return learned | {
        "parent": content_hash(local_copy(config.base)),
        "samples_version": version,
        "settings": config.model_dump(mode="json", exclude={"run_id", "dry_run"}),
        "git_commit": code_commit(),
    }


def _surveyed(config: FinetuneConfig, root: Root, training: pa.Table, held_out: pa.Table) -> pa.Table:
    """Both parts marked `held_out`: pairs as PAIRS, pictures with the sizes of their photos and without what cannot be read."""
    if config.preference.beta:
        pairs = [examples.pairs_to_place(part) for part in (training, held_out)]
        return pa.concat_tables(
            part.append_column("held_out", pa.array([held] * part.num_rows, pa.bool_()))
            for part, held in zip(pairs, (False, True), strict=True)
        )
    parts = []
    for part, held in ((training, False), (held_out, True)):
        failures = Failures(root, config.run_id, "failed_placing")
        found = examples.survey(root, part, config.place, failures)
        found = found.filter(pc.is_null(found["reject"]))
        if not found.num_rows:
            raise ConfigError(
                f"not one of the {part.num_rows} pictures to {'validate' if held else 'train'} on has a mask that can be read"
            )
        parts.append(found.append_column("held_out", pa.array([held] * found.num_rows)))
    return pa.concat_tables(parts)


def _train(config: FinetuneConfig, root: Root, rows: pa.Table, run: TrainingRun) -> None:
    if config.latents.placements:
        training = rows.filter(pc.invert(rows["held_out"]))
        run = replace(run, latents=latent_cache.precompute_latents(config, examples.Plan(training, config)))
        encoded = latent_cache.encoded(root, run.latents, training, config.latents.placements)
        rows = pa.concat_tables([encoded, rows.filter(rows["held_out"])])
    buffer = pa.BufferOutputStream()
    pap.write_table(rows, buffer)
    root.write(f"{run.folder}/data.parquet", buffer.getvalue().to_pybytes())
    from adbooster.finetune.worker import train_worker

    # Nodes that an autoscaler has yet to start take minutes, not the minute that is Ray Train's default.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"run": run},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
        run_config=RunConfig(
            name=f"{run.name}-{config.run_id}",
            storage_path=root.path(f"{run.folder}/ray"),
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
