"""Stable Diffusion inpainting as an outpainter: everything but the product is painted anew.

Shapes: N pictures, C channels, P pixels a side, h latents a side, T tokens, D text width.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionInpaintPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from adbooster.errors import ConfigError

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()
INPAINT_CHANNELS = 9  # noisy latents 4, paint mask 1, masked-image latents 4


@dataclass(frozen=True)
class Painting:
    """One candidate to paint.

    image_u8         uint8 [P,P,3], RGB; the product, anything elsewhere
    product_mask_u8  uint8 [P,P], 255 = product
    """

    image_u8: np.ndarray
    product_mask_u8: np.ndarray
    prompt: str
    negative_prompt: str
    seed: int


def check_weights(path: Path) -> None:
    """raises ConfigError unless the folder is an inpainting pipeline in diffusers layout; loads nothing"""
    config = path / "unet" / "config.json"
    if not config.is_file():
        raise ConfigError(f"the weights {path} have no unet/config.json; give a folder in diffusers layout")
    channels = json.loads(config.read_text()).get("in_channels")
    if channels != INPAINT_CHANNELS:
        raise ConfigError(f"the UNet of {path} takes {channels} channels; an inpainting UNet takes {INPAINT_CHANNELS}")
    if not list((path / "unet").glob("*.safetensors")):
        raise ConfigError(f"the weights {path} have no safetensors in unet/")


def _load(path: Path, dtype: torch.dtype, device: str) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        path, torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    return pipe.to(device)


class Outpainter:
    """Paints batches of unrelated candidates with one set of weights."""

    def __init__(self, path: Path, device: str, dtype: str, batch: int, threads: int = 1):
        check_weights(path)
        torch.set_num_threads(threads)
        self.device, self.batch = device, batch
        # On the CPU weights stay float32 and autocast picks what gains from bfloat16.
        self.dtype = torch.float32 if device == "cpu" else getattr(torch, dtype)
        self.autocast = device == "cpu" and dtype == "bfloat16"
        pipe = _load(path, self.dtype, device)
        self.unet, self.vae, self.text_encoder = (m.eval() for m in (pipe.unet, pipe.vae, pipe.text_encoder))
        self.tokenizer, self.scheduler, self.factor = pipe.tokenizer, pipe.scheduler, pipe.vae_scale_factor
        self.states: dict[str, torch.Tensor] = {}

    def paint(self, paintings: list[Painting], num_inference_steps: int, guidance_scale: float) -> np.ndarray:
        """Paint every candidate; uint8 [N,P,P,3].

        A picture depends on its own painting alone: each has its own generator, and every batch is filled up to the
        same size, so that the same kernels run whatever else is in it.
        raises ConfigError if P is not a multiple of the VAE's factor
        """
        out = []
        for at in range(0, len(paintings), self.batch):
            some = paintings[at : at + self.batch]
            full = some + [some[-1]] * (self.batch - len(some))
            with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
                out.append(self._paint_batch(full, num_inference_steps, guidance_scale)[: len(some)])
        return np.concatenate(out)

    def _paint_batch(self, paintings: list[Painting], steps: int, guidance_scale: float) -> np.ndarray:
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(steps, device=self.device)
        mask_N1hh, masked_NChh = self._condition(paintings)
        guided = guidance_scale > 1
        states_NTD = self._text([p.prompt for p in paintings])
        if guided:
            states_NTD = torch.cat([self._text([p.negative_prompt for p in paintings]), states_NTD])
        x_NChh = self._noise(paintings, masked_NChh.shape[1:]) * scheduler.init_noise_sigma
        twice = 2 if guided else 1
        condition = torch.cat([mask_N1hh, masked_NChh], 1).repeat(twice, 1, 1, 1)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_NChh.repeat(twice, 1, 1, 1), t)
            step = self.unet(torch.cat([scaled, condition], 1).to(self.dtype), t, states_NTD, return_dict=False)[0]
            if guided:
                without, towards = step.chunk(2)
                step = without + guidance_scale * (towards - without)
            x_NChh = scheduler.step(step, t, x_NChh, return_dict=False)[0]
        decoded = self.vae.decode(x_NChh.to(self.dtype) / self.vae.config.scaling_factor, return_dict=False)[0]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _condition(self, paintings: list[Painting]) -> tuple[torch.Tensor, torch.Tensor]:
        """The paint mask [N,1,h,h] and the masked picture's latents [N,4,h,h]: the product kept, grey elsewhere."""
        side_px = paintings[0].image_u8.shape[0]
        if side_px % self.factor:
            raise ConfigError(f"a picture of {side_px} px cannot be painted: the VAE needs a multiple of {self.factor}")
        images = torch.from_numpy(np.stack([p.image_u8 for p in paintings])).to(self.device)
        products = torch.from_numpy(np.stack([p.product_mask_u8 for p in paintings])).to(self.device)
        paint_mask_N1PP = (products[:, None] < 128).float()
        pixels_NCPP = (images.permute(0, 3, 1, 2).float() / 127.5 - 1) * (paint_mask_N1PP < 0.5)
        latents = self.vae.encode(pixels_NCPP.to(self.dtype)).latent_dist.mode() * self.vae.config.scaling_factor
        h = side_px // self.factor
        return torch.nn.functional.interpolate(paint_mask_N1PP, size=(h, h)).to(self.dtype), latents

    def _noise(self, paintings: list[Painting], shape: torch.Size) -> torch.Tensor:
        """Drawn on the CPU, so that the device does not matter: [N,4,h,h]."""
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(p.seed)) for p in paintings]
        return torch.stack(draws).to(self.device, self.dtype)

    def _text(self, prompts: list[str]) -> torch.Tensor:
        """Text states [N,T,D], each distinct prompt encoded once in this process."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.states:
                ids = self.tokenizer(
                    prompt,
                    padding="max_length",
                    max_length=self.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                self.states[prompt] = self.text_encoder(ids.to(self.device))[0][0]
        return torch.stack([self.states[p] for p in prompts])


class Inpainting:
    """An inpainting model in training: frozen VAE and text encoder, the UNet that learns, and its loss."""

    def __init__(self, path: Path, device: str, threads: int):
        torch.set_num_threads(threads)
        self.device = device
        self.pipe = _load(path, torch.float32, device)
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
