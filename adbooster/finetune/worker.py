"""What every Ray Train worker runs: batches in, steps, validation, checkpoints, and at the end the weights."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import ray
import ray.train.torch
import torch

from adbooster.contracts.errors import TrainingDiverged
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, in_order, through
from adbooster.engine.progress import write_facts
from adbooster.finetune import examples, latent_cache
from adbooster.finetune.checkpoints import Checkpoints, Mark, open_at
from adbooster.finetune.config import TrainingRun
from adbooster.finetune.inpainting import Encoded, InpaintingModel
from adbooster.finetune.rows import PLACED, PLACED_PAIRS, READ, arrays, pair_arrays
from adbooster.finetune.stages import LatentReader, PairPlacer, Placer
from adbooster.finetune.trainer import Trainer
from adbooster.finetune.validation import Curves, PairPanel, Panel
from adbooster.pictures import images
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
REPORT_EVERY_S = 2
SETTLED = 3  # steps before images/s is measured


def train_worker(loop_config: dict[str, TrainingRun]) -> None:
    """Train `loop_config["run"]` from its last checkpoint, or the base, to the end; rank 0 writes what is to be kept."""
    context = ray.train.get_context()
    training = Training(loop_config["run"], context.get_world_rank(), context.get_world_size())
    ray.train.report(training.run())


class Training:
    """One attempt at a run, on one worker."""

    def __init__(self, run: TrainingRun, rank: int, workers: int):
        config = run.config
        self.facts, self.config, self.rank, self.workers = run, config, rank, workers
        self.root, self.folder = Root(config.root_uri), run.folder
        if config.device == "cuda":
            torch.cuda.set_device(ray.train.torch.get_device())
        rows = pap.read_table(pa.BufferReader(self.root.read(f"{self.folder}/data.parquet")))
        training, held_out = (rows.filter(m) for m in (pc.invert(rows["held_out"]), rows["held_out"]))
        plan, panel = (examples.PairPlan, PairPanel) if config.preference.beta else (examples.Plan, Panel)
        self.plan = plan(training, config)
        base = local_copy(config.base)
        self.model = InpaintingModel(base, config.device, config.threads, config.precision, config.lora)
        self.trainer = Trainer(self.model, config, workers)
        self.checkpoints = Checkpoints(self.root, f"{self.folder}/checkpoints")
        self.figures: dict = {"curve": [], "unreadable": 0}
        self.reported_at = 0.0
        self._restore()
        # Sharded weights take every worker to validate; else rank 0 does it while the others wait.
        self.validates = rank == 0 or self.trainer.sharded
        self.panel = panel(self.model, config, self.root, held_out) if self.validates else None
        if run.latents:
            self._encoders_to("cpu")
        self.curves = None
        if rank == 0:
            where = f"{self.folder}/tensorboard"
            self.curves = Curves(self.root, where, self.trainer.steps_done, config.mlflow_uri, run.name)

    def run(self) -> dict:
        """Figures of the run, for its report and its card."""
        first, config = self.trainer.steps_done, self.config
        self.figures["resumed_from_step"] = first
        if "loss_before" not in self.figures:
            self._keep("before", self._validate())
        batches, started, aside, counted = self._batches(first), time.perf_counter(), 0.0, first
        for step in range(first, config.steps):
            measured = self.trainer.step([next(batches) for _ in range(config.accumulate)])
            done, began = step + 1, time.perf_counter()
            if done % config.log_every == 0 or done == config.steps:
                self._log(measured, (done - counted) / (self._now() - started - aside))
            if done % config.checkpoint_every == 0 or (done % config.log_every == 0 and self._preempted()):
                self._checkpoint()
            if config.panel.every and done % config.panel.every == 0 and done < config.steps:
                self._validate()
            aside += time.perf_counter() - began
            if done == first + SETTLED:
                started, aside, counted = self._now(), 0.0, done
        pace = (config.steps - counted) / max(self._now() - started - aside, 1e-9)
        self.figures["images_per_s"] = round(pace * config.batch * config.passes, 3)
        self._keep("after", self._validate())
        if self.facts.keep_checkpoint and config.steps % config.checkpoint_every:
            self._checkpoint()
        self._finish()
        return {k: v for k, v in self.figures.items() if k != "curve"}

    def _keep(self, when: str, found: dict[str, float]) -> None:
        self.figures |= {f"{name}_{when}": value for name, value in found.items()}

    def _batches(self, first: int) -> Iterator[Encoded]:
        """This worker's batches from step `first` on, made by Ray Data actors ahead of the steps.

        Each worker streams its own part of the plan: a shared split would hand blocks to whoever asks first, and the
        position in the data would not follow from the step.
        """
        config, rows = self.config, self.plan.of_worker(self.rank, first, self.config.steps)
        whole = max(1, config.place.batch // config.batch) * config.batch
        pool = config.place.model_copy(update={"batch": whole})
        if config.preference.beta:
            stage, out, encoded = PairPlacer, PLACED_PAIRS, self._encoded_pairs
        elif self.facts.latents:
            rows = latent_cache.located(self.root, self.facts.latents, rows)
            stage, out, encoded = LatentReader, READ, self._from_cache
        else:
            stage, out, encoded = Placer, PLACED, self._encoded
        failures = None if self.facts.latents else Failures(self.root, config.run_id, "failed_placing")
        ds = through(dataset(rows, whole), stage, pool, out, failures, root=self.root, config=config)
        for batch in in_order(ds, config.batch):
            self.figures["unreadable"] += batch.num_rows - batch["reject"].null_count
            yield encoded(batch)

    def _from_cache(self, rows: pa.Table) -> Encoded:
        return latent_cache.batch_of(rows, self.config.device, self.model.text)

    def _encoded(self, rows: pa.Table) -> Encoded:
        return self.model.encode(arrays(rows))

    def _encoded_pairs(self, rows: pa.Table) -> Encoded:
        return self.model.encode(pair_arrays(rows))

    def _validate(self) -> dict[str, float]:
        """The panel's figures, and its paintings, with the weights that would be published now; none where there is no panel."""
        if not self.panel:
            return {}
        step, wanted = self.trainer.steps_done, self.config.panel.paintings
        with self.trainer.averaged():
            found = self.panel.figures()
            if wanted and self.facts.latents:
                self._encoders_to(self.config.device)
            grid = self.panel.grid() if wanted else None
            if wanted and self.facts.latents:
                self._encoders_to("cpu")
        self.trainer.check_finite(found["loss"])
        if self.curves:
            self.curves.add(step, {f"validation/{name}": value for name, value in found.items()})
            if grid is not None:
                self.root.write(f"{self.folder}/panel/step-{step:09d}.png", images.encode(grid, "png", 0)[0])
                self.curves.add_picture(step, "validation/paintings", grid)
            self.curves.flush()
            log.info("step %d: on held-out pictures %s", step, ", ".join(f"{n} {v:.4f}" for n, v in found.items()))
        return found

    def _encoders_to(self, device: str) -> None:
        """With a cache they are in the way, but for the text encoders where the prior has texts of its own."""
        vae, *encoders = self.model.frozen()
        for part in (vae, *(() if self.config.prior else encoders)):
            part.to(device)

    def _log(self, measured: dict[str, torch.Tensor], steps_per_s: float) -> None:
        loss_of_all = measured["loss"]
        if self.workers > 1:
            torch.distributed.all_reduce(loss_of_all)
            loss_of_all /= self.workers
        loss = float(loss_of_all)
        self.trainer.check_finite(loss)
        if not self.curves:
            return
        done, config = self.trainer.steps_done, self.config
        figures = {
            "train/loss": loss,
            "train/gradient_norm": float(measured["gradient_norm"]),
            "train/learning_rate": self.trainer.schedule.get_last_lr()[0],
            "speed/images_per_s": steps_per_s * config.batch * config.passes,
            "memory/gib": self._memory_gib(),
        }
        self.figures["curve"].append([done, loss])
        self.curves.add(done, figures)
        line = f"finetune: step {done:,} of {config.steps:,}, loss {loss:.4f}, {figures['speed/images_per_s']:.1f} images/s"
        log.info(line)
        if time.monotonic() - self.reported_at > REPORT_EVERY_S or done == config.steps:
            self.reported_at = time.monotonic()
            write_facts(self.root, config.run_id, "finetune", done, config.steps, line)

    def _memory_gib(self) -> float:
        if self.config.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _now(self) -> float:
        if self.config.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _preempted(self) -> bool:
        """Whether a node of this run is about to be taken away."""
        return self.config.workers > 0 and ray.train.get_preemption_info() is not None

    def _checkpoint(self) -> None:
        state = self.trainer.state() if self.validates else None
        if self.rank == 0 and state:
            mark = Mark(step=self.trainer.steps_done, architecture=self.facts.architecture, name=self.facts.name)
            self.checkpoints.save(mark, state | {"figures": json.dumps(self.figures)})
            if self.curves:
                self.curves.flush()

    def _restore(self) -> None:
        """From this run's last checkpoint, or from that of the run it goes on from."""
        found = self.checkpoints
        mark = found.latest()
        if mark is None and self.facts.resume_from:
            found = open_at(self.facts.resume_from)
            mark = found.latest()
        if mark is None:
            return
        state = found.load(mark)
        self.trainer.restore(state)
        if found is self.checkpoints:
            self.figures = json.loads(state["figures"])
        log.info("rank %d goes on from step %d", self.rank, mark.step)

    def _finish(self) -> None:
        """Write weights/<revision>/ whole, its card last, then the result that names it."""
        with self.trainer.averaged():
            weights = self.trainer.state()["weights"] if self.validates else None
        if self.rank != 0 or weights is None:
            return
        if not all(bool(torch.isfinite(w).all()) for w in weights.values()):
            raise TrainingDiverged(f"the weights hold no numbers any more after step {self.trainer.steps_done}")
        given = InpaintingModel(local_copy(self.config.base), "cpu", self.config.threads, "float32", self.config.lora)
        with torch.no_grad():
            for name, p in given.trainable().items():
                p.copy_(weights[name])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "weights"
            given.save(folder)
            revision = content_hash(folder)
            card = self.facts.card | {"metrics": self.figures, "revision": revision}
            (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
            if not self.root.exists(f"weights/{revision}/card.json"):
                self.root.put_folder(folder, f"weights/{revision}")
        self.figures["revision"] = revision
        if self.curves:
            self.curves.close()
        self.root.write_json(self.facts.result, self.figures)
        if not self.facts.keep_checkpoint:
            self.root.clear(f"{self.folder}/checkpoints")
