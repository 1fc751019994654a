"""Samples with a scene -> weights: Ray Train teaches an inpainting UNet to leave the product alone and paint the rest."""

import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pydantic import BaseModel, Field
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from adbooster import images, layout, schema, tables
from adbooster.errors import ConfigError
from adbooster.objects import Root, content_hash, local_copy, refuse_pickles
from adbooster.pools import Pool, dataset, through
from adbooster.recipe import digest
from adbooster.settings import JobConfig, Uri

log = logging.getLogger(__name__)


class FinetuneConfig(JobConfig):
    """Settings of `jobs.finetune`."""

    base: Uri
    """Weights to start from: an inpainting pipeline in diffusers layout."""
    device: str = Field("cuda", pattern="^(cuda|cpu)$")
    """Where training runs; never chosen by what is there."""
    workers: int = Field(1, ge=0)
    """Ray Train workers (one GPU each on cuda); 0 trains in this process, for tests."""
    threads: int = Field(1, ge=1)
    """CPU threads a worker."""
    size_px: int = Field(512, ge=32)
    """Side of the training pictures."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    batch: int = Field(4, ge=1)
    """Pictures a worker and step."""
    learning_rate: float = Field(5e-6, gt=0)
    """AdamW; falls linearly to zero over `steps` after `warmup_steps`."""
    warmup_steps: int = Field(10, ge=0)
    """Linear from zero."""
    empty_text_share: float = Field(0.1, ge=0, le=1)
    """Pictures trained without their caption, for classifier-free guidance."""
    held_out_share: float = Field(0.15, gt=0, lt=1)
    """Products kept for validation, chosen by a hash of their id."""
    seed: int = 0
    """Placements, noise and order."""
    place: Pool = Pool(batch=32)
    """Actors that decode and place."""
    max_failures: int = Field(3, ge=0)
    """Times that Ray Train starts the workers again."""


class FinetuneReport(BaseModel):
    """What `jobs.finetune` did."""

    job: str = "finetune"
    run_id: str
    weights: str | None
    weights_revision: str | None
    reused: bool
    samples: int
    held_out: int
    steps: int
    loss_before: float | None
    loss_after: float | None
    seconds: float


PLACED = pa.schema(
    [(name, schema.SAMPLES.field(name).type) for name in ("sample_id", "product_id", "caption", "reject")]
)
EXAMPLES = pa.schema([*PLACED, ("image", pa.binary()), ("mask", pa.binary())])
SCENIC = pa.schema([*PLACED, ("photo_uri", pa.string()), ("mask_uri", pa.string())])


class Placer:
    """A training square of each photo: raw uint8 pixels [S,S,3] and product mask [S,S], 255 = product."""

    def __init__(self, root: Root, size_px: int, seed: int):
        self.root, self.size_px, self.seed = root, size_px, seed

    def __call__(self, rows: pa.Table) -> pa.Table:
        pairs = [self._place(row) for row in rows.to_pylist()]
        return schema.extend(rows, EXAMPLES, image=[p[0] for p in pairs], mask=[p[1] for p in pairs])

    def _place(self, row: dict) -> tuple[bytes, bytes]:
        photo = images.decode(self.root.read(row["photo_uri"]))
        mask = images.decode_mask(self.root.read(row["mask_uri"]))
        box = layout.training_crop(mask, int(digest(row["sample_id"], str(self.seed))[:15], 16))
        image, mask = (
            images.resize(np.ascontiguousarray(a[box.slices]), self.size_px, self.size_px) for a in (photo, mask)
        )
        return image.tobytes(), mask.tobytes()


def examples(rows: dict, size_px: int) -> dict:
    """Rows of EXAMPLES as the arrays that the loss takes."""
    image = np.stack([np.frombuffer(b, np.uint8).reshape(size_px, size_px, 3) for b in rows["image"]])
    mask = np.stack([np.frombuffer(b, np.uint8).reshape(size_px, size_px) for b in rows["mask"]])
    return {"image": image, "mask": mask, "caption": rows["caption"]}


def train_worker(settings: dict) -> None:
    """What every Ray Train worker runs; rank 0 measures, and saves the weights to the root."""
    import torch
    from ray.train.torch import prepare_model

    from adbooster.inpainting import Inpainting

    config = FinetuneConfig.model_validate(settings["config"])
    rank, workers = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    model = Inpainting(local_copy(config.base), config.device, config.threads)
    unet = prepare_model(model.unet, move_to_device=config.device == "cuda") if workers > 1 else model.unet
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    held_out = [examples(batch, config.size_px) for batch in settings["held_out"]]
    before = model.validation(held_out) if rank == 0 else None
    unet.train()
    for step, rows in enumerate(_batches(config, rank)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / (config.warmup_steps + 1), 1 - step / config.steps)
        loss = model.loss(
            unet, examples(rows, config.size_px), (config.seed * 10**6 + step) * 1000 + rank, config.empty_text_share
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        if step + 1 == config.steps:
            break
    metrics = {"loss_before": before, "loss_after": model.validation(held_out) if rank == 0 else None}
    if rank == 0:
        metrics["revision"] = _save_weights(config, model, settings["card"] | metrics)
        Root(config.root_uri).write_json(settings["result"], metrics)  # Ray Train keeps none without a checkpoint
    ray.train.report(metrics)


def _batches(config: FinetuneConfig, rank: int):
    """Batches of this worker's share, for as many epochs as it takes."""
    shard = ray.train.get_dataset_shard("train")
    for epoch in range(config.steps + 1):
        yield from shard.iter_batches(
            batch_size=config.batch,
            drop_last=False,
            local_shuffle_buffer_size=8 * config.batch,
            local_shuffle_seed=config.seed * 1000 + epoch * 100 + rank,
        )


def _save_weights(config: FinetuneConfig, model, card: dict) -> str:
    """Write weights/<revision>/ whole, its card last; the revision is a hash of the content."""
    root = Root(config.root_uri)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        model.save(folder)
        revision = content_hash(folder)
        (folder / "card.json").write_text(json.dumps(card | {"revision": revision}, indent=2) + "\n")
        if not root.exists(f"weights/{revision}/card.json"):
            root.put_folder(folder, f"weights/{revision}")
    return revision


def scenic_samples(root: Root) -> pa.Table:
    """Usable pictures that show a product in a scene."""
    rows = tables.read(root, "samples")
    usable = pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))
    return schema.fill(rows.filter(pc.and_(usable, pc.equal(rows["background"], "scene"))), SCENIC).sort_by("sample_id")


def finetune(config: FinetuneConfig) -> FinetuneReport:
    """Train on the scenes of tables/samples; the same data and settings give back the weights they gave before."""
    started = time.monotonic()
    root = Root(config.root_uri)
    version = tables.version(root, "samples")
    rows = scenic_samples(root)
    training, held_out = _split(rows, config.held_out_share)
    if not training.num_rows or not held_out.num_rows:
        raise ConfigError(
            f"tables/samples has {training.num_rows} pictures with a scene to train on and {held_out.num_rows} to validate; "
            "both need at least one (lifestyle pictures in the feed give them)"
        )
    name = _name(config, rows)
    known = f"runs/finetune-{name}.json"
    done = FinetuneReport(
        run_id=config.run_id,
        weights=None,
        weights_revision=None,
        reused=root.exists(known),
        samples=training.num_rows,
        held_out=held_out.num_rows,
        steps=config.steps,
        loss_before=None,
        loss_after=None,
        seconds=0.0,
    )
    if done.reused:
        metrics = json.loads(root.read(known))
    elif config.dry_run:
        return done
    else:
        card = {"settings": config.model_dump(mode="json", exclude={"run_id", "dry_run"}), "samples_version": version}
        _train(config, root, name, training, held_out, {"card": card, "result": known})
        metrics = json.loads(root.read(known))
    done.weights_revision = metrics["revision"]
    done.weights = f"{root.uri}/weights/{metrics['revision']}"
    done.loss_before, done.loss_after = (round(metrics[k], 5) for k in ("loss_before", "loss_after"))
    done.seconds = round(time.monotonic() - started, 1)
    return done


def _split(rows: pa.Table, held_out_share: float) -> tuple[pa.Table, pa.Table]:
    """Rows to train on and rows of held-out products: those whose hash is low, and at least the lowest."""
    shares = {p: int(digest("held out", p)[:8], 16) / 16**8 for p in rows["product_id"].to_pylist()}
    bound = max(held_out_share, min(shares.values(), default=0))
    held = pa.array([shares[p] <= bound for p in rows["product_id"].to_pylist()], pa.bool_())
    return rows.filter(pc.invert(held)), rows.filter(held)


def _name(config: FinetuneConfig, rows: pa.Table) -> str:
    """Hash of all that decides the weights, so that a finished Ray Train run of this name is truly the same."""
    settings = config.model_dump(
        mode="json", exclude={"root_uri", "run_id", "dry_run", "max_failures", "place", "threads"}
    )
    data = json.dumps(rows.to_pydict(), sort_keys=True)
    return digest(json.dumps(settings, sort_keys=True), content_hash(local_copy(config.base)), data)[:16]


def _train(config: FinetuneConfig, root: Root, name: str, training: pa.Table, held_out: pa.Table, told: dict) -> None:
    # Enough different placements that a short run does not see the same square twice.
    epochs = -(-config.steps * config.batch * max(1, config.workers) // training.num_rows)
    placements = [
        through(
            dataset(training, config.place.batch),
            Placer,
            config.place,
            EXAMPLES,
            root=root,
            size_px=config.size_px,
            seed=s,
        )
        for s in range(config.seed, config.seed + min(epochs, 4))
    ]
    placer = Placer(root, config.size_px, seed=-1)
    held = placer(held_out.slice(0, 64)).to_pylist()
    batches = [
        {k: [r[k] for r in held[i : i + config.batch]] for k in ("image", "mask", "caption")}
        for i in range(0, len(held), config.batch)
    ]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "held_out": batches, **told},
        datasets={"train": placements[0].union(*placements[1:]).materialize()},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.device == "cuda"),
        run_config=RunConfig(
            name=f"finetune-{name}",
            storage_path=root.path(f"runs/{config.run_id}/train"),
            storage_filesystem=root.arrow(),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    trainer.fit()


def check(config: FinetuneConfig) -> None:
    """raises ConfigError for what can be known before a worker starts: weights, root, cluster"""
    from adbooster.outpaint import check_weights

    base = local_copy(config.base)
    check_weights(base)
    refuse_pickles(base)
    Root(config.root_uri).check_writable()
    have, want = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else None, config.workers
    if config.device == "cuda" and have is not None and have < want:
        raise ConfigError(f"fine-tuning asks for {want} GPUs and the cluster has {have:g}")
