"""Validation while a model trains: figures on held-out pictures or pairs, paintings of them, and the curves of a run."""

import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch.nn import functional as F

from adbooster.finetune import examples
from adbooster.finetune.config import TrainingConfig
from adbooster.finetune.inpainting import Aims, Encoded, InpaintingModel
from adbooster.finetune.rows import arrays, noise_seed, pair_arrays
from adbooster.finetune.stages import PairPlacer, Placer
from adbooster.storage.objects import Root

DRAWS = 4  # of noise and timestep of each pair: one says little of which picture is preferred


class Panel:
    """The same pictures, placements, noise, timesteps and seeds at every validation."""

    def __init__(self, model: InpaintingModel, config: TrainingConfig, root: Root, held_out: pa.Table):
        self.model, self.config = model, config
        fixed = {"empty_text_share": 0.0, "prior": 0.0, "latents": config.latents.model_copy(update={"placements": 0})}
        plan = examples.Plan(held_out, config.model_copy(update=fixed))
        some = list(islice(plan.batches(), -(-config.panel.pictures // config.batch)))
        placer = Placer(root, plan.config)
        placed = [arrays(placer(plan.planned([batch]))) for batch in some]
        self.first = {k: v[: config.panel.paintings] for k, v in placed[0].items()}
        self.batches: list[Encoded] = [model.encode(batch) for batch in placed]

    @torch.no_grad()
    def losses(self) -> np.ndarray:
        """float [N]: the loss of every picture, unweighted, as comparable between runs; unreadable ones left out."""
        out = [
            losses[batch.weight > 0] for batch in self.batches for losses in [self.model.losses(self.model.unet, batch)]
        ]
        return torch.cat(out).cpu().numpy()

    def figures(self) -> dict[str, float]:
        """The mean loss."""
        return {"loss": float(self.losses().mean())}

    @torch.no_grad()
    def grid(self) -> np.ndarray:
        """uint8 [H,W,3]: a row a picture, with the photo, the masked photo that the model is given, and its painting."""
        image, mask = self.first["image"], self.first["mask"]
        painted = _painted(self.model, self.config, image, mask, self.first["caption"])
        masked = np.where(mask[..., None] < 128, np.uint8(127), image)
        return np.concatenate([np.concatenate(row, 1) for row in zip(image, masked, painted, strict=True)], 0)


class PairPanel:
    """The same pairs, noise, timesteps and seeds at every validation."""

    def __init__(self, model: InpaintingModel, config: TrainingConfig, root: Root, held_out: pa.Table):
        self.model, self.config = model, config.model_copy(update={"empty_text_share": 0.0})
        self.aims = Aims(min_snr_gamma=config.min_snr_gamma, beta=config.preference.beta)
        rows = held_out.sort_by([("aspect", "ascending"), ("pair_id", "ascending")])
        rows = rows.slice(0, config.panel.pictures)
        placed = PairPlacer(root, self.config)(examples.PairPlan(rows, self.config).once())
        placed = placed.filter(pc.is_null(placed["reject"]))
        sizes = np.unique(np.stack([placed[n].to_numpy() for n in ("width_px", "height_px")], 1), axis=0)
        self.pairs, self.batches, self.first = [], [], {}
        for wide, high in sizes.tolist():
            same = placed.filter(pc.and_(pc.equal(placed["width_px"], wide), pc.equal(placed["height_px"], high)))
            for at in range(0, same.num_rows, config.batch):
                some = same.slice(at, config.batch)
                batch = pair_arrays(some)
                self.first = self.first or batch
                self.pairs.append(some["pair_id"].to_pylist())
                self.batches.append(model.encode(batch))

    @torch.no_grad()
    def logits(self) -> np.ndarray:
        """float [DRAWS, pairs]: of each pair that its winner is preferred."""
        draws = []
        for draw in range(DRAWS):
            seeds = [[noise_seed(name, -1 - draw, self.config) for name in names] * 2 for names in self.pairs]
            some = [b._replace(noise_seed=s) for b, s in zip(self.batches, seeds, strict=True)]
            draws.append(torch.cat([self.model.preferences(self.model.unet, batch, self.aims) for batch in some]))
        return torch.stack(draws).cpu().numpy()

    def figures(self) -> dict[str, float]:
        """The mean loss, and the share of pairs whose winner is preferred in the mean of the draws; half of equals."""
        logits = torch.from_numpy(self.logits())
        preferred = logits.mean(0)
        accuracy = ((preferred > 0).float() + 0.5 * (preferred == 0).float()).mean()
        return {"loss": float(-F.logsigmoid(logits).mean()), "accuracy": float(accuracy)}

    @torch.no_grad()
    def grid(self) -> np.ndarray:
        """uint8 [H,W,3]: a row a pair, with the winner, the loser, and what the model paints in the winner's place."""
        n = len(self.first["image"]) // 2
        some = min(n, self.config.panel.paintings)
        winner, loser = self.first["image"][:some], self.first["image"][n : n + some]
        mask, words = self.first["mask"][:some], self.first["caption"][:some]
        painted = _painted(self.model, self.config, winner, mask, words)
        return np.concatenate([np.concatenate(row, 1) for row in zip(winner, loser, painted, strict=True)], 0)


def _painted(
    model: InpaintingModel, config: TrainingConfig, image_u8: np.ndarray, mask_u8: np.ndarray, words: list[str]
) -> np.ndarray:
    """Paintings round the products of pictures, always from the same seeds: all uint8 [N,H,W,3], masks [N,H,W]."""
    high, wide = mask_u8.shape[1:]
    with model.autocast():
        painted = model.pipe(  # pyright: ignore[reportCallIssue]  # which pipeline it is, the folder says
            prompt=list(words),
            image=[Image.fromarray(i) for i in image_u8],
            mask_image=[Image.fromarray(np.where(m < 128, 255, 0).astype(np.uint8)) for m in mask_u8],
            generator=[torch.Generator().manual_seed(config.seed + i) for i in range(len(words))],
            height=high,
            width=wide,
            strength=1.0,
            num_inference_steps=config.panel.num_inference_steps,
            guidance_scale=config.panel.guidance_scale,
            output_type="np",
        ).images
    return (np.nan_to_num(painted) * 255).round().astype(np.uint8)


class Curves:
    """Scalars and pictures by step. Files are written on this machine and brought below the root by `flush`."""

    def __init__(self, root: Root, folder: str, first_step: int, mlflow_uri: str = "", name: str = ""):
        from torch.utils.tensorboard import SummaryWriter

        self.root, self.folder, self.sent = root, folder, {}
        self.scratch = tempfile.TemporaryDirectory()
        # Points of an attempt that died after `first_step` are dropped: this one draws them again.
        self.writer = SummaryWriter(self.scratch.name, purge_step=first_step, filename_suffix=f".{first_step}")
        self.mlflow = None
        if mlflow_uri:
            import mlflow  # pyright: ignore[reportMissingImports]

            mlflow.set_tracking_uri(mlflow_uri)
            mlflow.set_experiment("adbooster-finetune")
            known = mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list")
            mlflow.start_run(run_id=known[0].info.run_id if known else None, run_name=name)
            self.mlflow = mlflow

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        if self.mlflow:
            self.mlflow.log_metrics({k.replace("/", "."): v for k, v in figures.items()}, step=step)

    def add_picture(self, step: int, name: str, picture_u8: np.ndarray) -> None:
        self.writer.add_image(name, picture_u8, step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()
        for path in sorted(Path(self.scratch.name).iterdir()):
            if self.sent.get(path.name) != path.stat().st_size:
                self.root.put_file(path, f"{self.folder}/{path.name}")
                self.sent[path.name] = path.stat().st_size

    def close(self) -> None:
        self.flush()
        self.writer.close()
        if self.mlflow:
            self.mlflow.end_run()
        self.scratch.cleanup()
