"""What every Ray Train worker runs: batches in, steps, looks, checkpoints, and at the end the weights."""

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
import ray
import ray.train.torch
import torch
from ray.data import DataContext

from adbooster import examples, images, latents
from adbooster.checkpoints import Checkpoints, Mark, open_at
from adbooster.errors import TrainingDiverged
from adbooster.inpainting import Encoded, Inpainting
from adbooster.learner import Learner
from adbooster.learning import Learning
from adbooster.objects import Root, content_hash, local_copy
from adbooster.panel import Panel
from adbooster.pools import dataset, through
from adbooster.tracking import Curves

log = logging.getLogger(__name__)
SETTLED = 3  # steps before images/s is measured


def train_worker(told: dict) -> None:
    """Train from the last checkpoint, or the base, to the end; rank 0 writes what is to be kept.

    told    config; name and folder of the run; latents, the cache's folder or ""; resume_from and keep_checkpoint;
            architecture; card; result, the file that says that the run is whole
    """
    context = ray.train.get_context()
    training = Training(told, context.get_world_rank(), context.get_world_size())
    ray.train.report(training.run())


class Training:
    """One attempt at a run, on one worker."""

    def __init__(self, told: dict, rank: int, workers: int):
        config: Learning = told["config"]
        self.told, self.config, self.rank, self.workers = told, config, rank, workers
        self.root, self.folder = Root(config.root_uri), told["folder"]
        if config.device == "cuda":
            torch.cuda.set_device(ray.train.torch.get_device())
        rows = pap.read_table(pa.BufferReader(self.root.read(f"{self.folder}/data.parquet")))
        self.plan = examples.Plan(rows.filter(pc.invert(rows["held_out"])), config)
        base = local_copy(config.base)
        self.model = Inpainting(base, config.device, config.threads, config.precision, config.lora)
        self.learner = Learner(self.model, config, workers)
        self.checkpoints = Checkpoints(self.root, f"{self.folder}/checkpoints")
        self.figures: dict = {"curve": [], "unreadable": 0}
        self._restore()
        # Sharded weights take every worker to look at; else rank 0 looks while the others wait.
        self.looks = rank == 0 or self.learner.sharded
        self.panel = Panel(self.model, config, self.root, rows.filter(rows["held_out"])) if self.looks else None
        if told["latents"]:
            self._encoders_to("cpu")
        self.curves = None
        if rank == 0:
            where = f"{self.folder}/tensorboard"
            self.curves = Curves(self.root, where, self.learner.steps_done, config.mlflow_uri, told["name"])

    def run(self) -> dict:
        """Figures of the run, for its report and its card."""
        first, config = self.learner.steps_done, self.config
        self.figures["resumed_from_step"] = first
        if "loss_before" not in self.figures:
            self.figures["loss_before"] = self._look()
        batches, started, aside, counted = self._batches(first), time.perf_counter(), 0.0, first
        for step in range(first, config.steps):
            told = self.learner.step([next(batches) for _ in range(config.accumulate)])
            done, began = step + 1, time.perf_counter()
            if done % config.log_every == 0 or done == config.steps:
                self._log(told, (done - counted) / (self._now() - started - aside))
            if done % config.checkpoint_every == 0 or (done % config.log_every == 0 and self._preempted()):
                self._checkpoint()
            if config.panel.every and done % config.panel.every == 0 and done < config.steps:
                self._look()
            aside += time.perf_counter() - began
            if done == first + SETTLED:
                started, aside, counted = self._now(), 0.0, done
        pace = (config.steps - counted) / max(self._now() - started - aside, 1e-9)
        self.figures["images_per_s"] = round(pace * config.batch * config.passes, 3)
        self.figures["loss_after"] = self._look()
        if self.told["keep_checkpoint"] and config.steps % config.checkpoint_every:
            self._checkpoint()
        self._finish()
        return {k: v for k, v in self.figures.items() if k != "curve"}

    def _batches(self, first: int) -> Iterator[Encoded]:
        """This worker's batches from step `first` on, made by Ray Data actors ahead of the steps.

        Each worker streams its own part of the plan: a shared split would hand blocks to whoever asks first, and the
        position in the data would not follow from the step.
        """
        config, rows = self.config, self.plan.of_worker(self.rank, first, self.config.steps)
        whole = max(1, config.place.batch // config.batch) * config.batch
        pool = config.place.model_copy(update={"batch": whole})
        options = DataContext.get_current().execution_options
        options.preserve_order = True
        try:
            if self.told["latents"]:
                rows = latents.located(self.root, self.told["latents"], rows)
                stage, out, encoded = (
                    latents.LatentReader,
                    latents.READ,
                    partial(latents.batch_of, device=config.device),
                )
            else:
                stage, out, encoded = examples.Placer, examples.PLACED, self._encoded
            ds = through(dataset(rows, whole), stage, pool, out, root=self.root, config=config)
            for batch in ds.iter_batches(batch_size=config.batch, batch_format="pyarrow", prefetch_batches=2):
                self.figures["unreadable"] += batch.num_rows - batch["reject"].null_count
                yield encoded(batch)
        finally:
            options.preserve_order = False

    def _encoded(self, rows: pa.Table) -> Encoded:
        return self.model.encode(examples.arrays(rows))

    def _look(self) -> float | None:
        """Loss and paintings of the weights that would be given out now."""
        if not self.panel:
            return None
        step, wanted = self.learner.steps_done, self.config.panel.paintings
        with self.learner.averaged():
            loss = self.panel.loss()
            if wanted and self.told["latents"]:
                self._encoders_to(self.config.device)
            grid = self.panel.grid() if wanted else None
            if wanted and self.told["latents"]:
                self._encoders_to("cpu")
        self.learner.check_finite(loss)
        if self.curves:
            self.curves.add(step, {"validation/loss": loss})
            if grid is not None:
                self.root.write(f"{self.folder}/panel/step-{step:09d}.png", images.encode(grid, "png", 0)[0])
                self.curves.add_picture(step, "validation/paintings", grid)
            self.curves.flush()
            log.info("step %d: loss on held-out pictures %.4f", step, loss)
        return loss

    def _encoders_to(self, device: str) -> None:
        for part in self.model.frozen():
            part.to(device)

    def _log(self, told: dict, steps_per_s: float) -> None:
        if self.workers > 1:
            torch.distributed.all_reduce(told["loss"])
            told["loss"] /= self.workers
        loss = float(told["loss"])
        self.learner.check_finite(loss)
        if not self.curves:
            return
        done, config = self.learner.steps_done, self.config
        figures = {
            "train/loss": loss,
            "train/gradient_norm": float(told["gradient_norm"]),
            "train/learning_rate": self.learner.schedule.get_last_lr()[0],
            "speed/images_per_s": steps_per_s * config.batch * config.passes,
            "memory/gib": self._memory_gib(),
        }
        self.figures["curve"].append([done, loss])
        self.curves.add(done, figures)
        log.info("step %d: loss %.4f, %.1f images/s", done, loss, figures["speed/images_per_s"])

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
        state = self.learner.state() if self.looks else None
        if self.rank == 0 and state:
            mark = Mark(step=self.learner.steps_done, architecture=self.told["architecture"], name=self.told["name"])
            self.checkpoints.save(mark, state | {"figures": json.dumps(self.figures)})
            if self.curves:
                self.curves.flush()

    def _restore(self) -> None:
        """From this run's last checkpoint, or from that of the run it goes on from."""
        found = self.checkpoints
        mark = found.latest()
        if mark is None and self.told["resume_from"]:
            found = open_at(self.told["resume_from"])
            mark = found.latest()
        if mark is None:
            return
        state = found.load(mark)
        self.learner.restore(state)
        if found is self.checkpoints:
            self.figures = json.loads(state["figures"])
        log.info("rank %d goes on from step %d", self.rank, mark.step)

    def _finish(self) -> None:
        """Write weights/<revision>/ whole, its card last, then the result that names it."""
        with self.learner.averaged():
            weights = self.learner.state()["weights"] if self.looks else None
        if self.rank != 0 or weights is None:
            return
        if not all(bool(torch.isfinite(w).all()) for w in weights.values()):
            raise TrainingDiverged(f"the weights hold no numbers any more after step {self.learner.steps_done}")
        given = Inpainting(local_copy(self.config.base), "cpu", self.config.threads, "float32", self.config.lora)
        with torch.no_grad():
            for name, p in given.trainable().items():
                p.copy_(weights[name])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "weights"
            given.save(folder)
            revision = content_hash(folder)
            card = self.told["card"] | {"metrics": self.figures, "revision": revision}
            (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
            if not self.root.exists(f"weights/{revision}/card.json"):
                self.root.put_folder(folder, f"weights/{revision}")
        self.figures["revision"] = revision
        if self.curves:
            self.curves.close()
        self.root.write_json(self.told["result"], self.figures)
        if not self.told["keep_checkpoint"]:
            self.root.clear(f"{self.folder}/checkpoints")
