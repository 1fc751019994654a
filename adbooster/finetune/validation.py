"""Validation while a model trains: the loss on held-out pictures, and paintings of them from fixed seeds."""

from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from adbooster.finetune import examples
from adbooster.finetune.config import TrainingConfig
from adbooster.finetune.inpainting import Encoded, InpaintingModel
from adbooster.finetune.rows import arrays
from adbooster.finetune.stages import Placer
from adbooster.storage.objects import Root


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

    def loss(self) -> float:
        return float(self.losses().mean())

    @torch.no_grad()
    def grid(self) -> np.ndarray:
        """uint8 [H,W,3]: a row a picture, with the photo, the masked photo that the model is given, and its painting."""
        image, mask, words = self.first["image"], self.first["mask"], self.first["caption"]
        high, wide = mask.shape[1:]
        with self.model.autocast():
            painted = self.model.pipe(  # pyright: ignore[reportCallIssue]  # which pipeline it is, the folder says
                prompt=list(words),
                image=[Image.fromarray(i) for i in image],
                mask_image=[Image.fromarray(np.where(m < 128, 255, 0).astype(np.uint8)) for m in mask],
                generator=[torch.Generator().manual_seed(self.config.seed + i) for i in range(len(words))],
                height=high,
                width=wide,
                strength=1.0,
                num_inference_steps=self.config.panel.num_inference_steps,
                guidance_scale=self.config.panel.guidance_scale,
                output_type="np",
            ).images
        painted = (np.nan_to_num(painted) * 255).round().astype(np.uint8)
        masked = np.where(mask[..., None] < 128, np.uint8(127), image)
        return np.concatenate([np.concatenate(row, 1) for row in zip(image, masked, painted, strict=True)], 0)
