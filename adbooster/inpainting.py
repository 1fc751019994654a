"""Stable Diffusion inpainting in training: its loss, its validation and its weights.

Shapes: N pictures, C channels, P pixels a side, h latents a side, T tokens, D text width.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

from adbooster.outpaint import load_pipeline


class Inpainting:
    """An inpainting model in training: frozen VAE and text encoder, the UNet that learns, and its loss."""

    def __init__(self, path: Path, device: str, threads: int):
        torch.set_num_threads(threads)
        self.device = device
        self.pipe = load_pipeline(path, torch.float32, device)
        self.unet = self.pipe.unet
        for part in (self.pipe.vae, self.pipe.text_encoder):
            part.requires_grad_(False).eval()
        self.noising = DDPMScheduler.from_config(self.pipe.scheduler.config)

    def loss(self, unet, examples: dict, seed: int, empty_text_share: float) -> torch.Tensor:
        """Mean squared error of the UNet's prediction on one batch; noise, timesteps and empty texts follow from `seed`.

        unet      self.unet, or what wraps it for several workers
        examples  image uint8 [N,P,P,3], mask uint8 [N,P,P] (255 = product), caption N texts
        """
        rng, n = np.random.default_rng(seed), len(examples["caption"])
        image_NCPP = torch.from_numpy(examples["image"]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        paint_mask_N1PP = (torch.from_numpy(examples["mask"]).to(self.device)[:, None] < 128).float()
        words = ["" if rng.uniform() < empty_text_share else str(c) for c in examples["caption"]]
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
            states_NTD = self._text(words)
            x_NChh, masked_NChh = self._latents(image_NCPP), self._latents(image_NCPP * (paint_mask_N1PP < 0.5))
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(x_NChh.shape, generator=generator).to(self.device)
        t_N = torch.randint(self.noising.config.num_train_timesteps, (n,), generator=generator).to(self.device)
        small = torch.nn.functional.interpolate(paint_mask_N1PP, size=x_NChh.shape[-2:])
        with torch.autocast(self.device, torch.bfloat16):
            noisy = self.noising.add_noise(x_NChh, noise, t_N)
            predicted = unet(torch.cat([noisy, small, masked_NChh], 1), t_N, states_NTD, return_dict=False)[0]
        velocity = self.noising.config.prediction_type == "v_prediction"
        target = self.noising.get_velocity(x_NChh, noise, t_N) if velocity else noise
        return torch.nn.functional.mse_loss(predicted.float(), target)

    def validation(self, batches: list[dict]) -> float:
        """Mean loss over batches, with the same noise and timesteps each time."""
        self.unet.eval()
        with torch.no_grad():
            losses = [self.loss(self.unet, batch, 10**6 + i, 0.0).item() for i, batch in enumerate(batches)]
        self.unet.train()
        return float(np.mean(losses))

    def save(self, folder: Path) -> None:
        """The whole pipeline as fp16 safetensors; the model is not trained on after this."""
        self.pipe.to("cpu", dtype=torch.float16).save_pretrained(folder, safe_serialization=True)

    def _text(self, words: list[str]) -> torch.Tensor:
        ids = self.pipe.tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids.to(self.device))[0]

    def _latents(self, image_NCPP: torch.Tensor) -> torch.Tensor:
        return self.pipe.vae.encode(image_NCPP).latent_dist.mode().float() * self.pipe.vae.config.scaling_factor
