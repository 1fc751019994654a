"""The kinds of outpainters, behind one interface: Stable Diffusion 1.x and 2.x, SDXL, and flow-matching fill transformers.

Which one a folder holds, its model_index.json says. What they share, the loop over the steps, is outpainter.py's.
Shapes: N pictures, C channels, H x W pixels, h x w latents, T tokens, D text width, L = h/2 * w/2 patches.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch.nn import functional as F

from adbooster.contracts.recipe import Recipe
from adbooster.models.caching import DeepCache

DECODED_PIXELS = 16 * 512 * 512  # at once; float16 activations of the VAE take about 2.5 KiB a pixel


class Words(NamedTuple):
    """Text as the network takes it: states [N,T,D], and what two of the families pool of it, [N,D]."""

    states: torch.Tensor
    pooled: torch.Tensor | None = None

    @property
    def size_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self if t is not None)

    @staticmethod
    def stacked(some: list["Words"]) -> "Words":
        """One batch of single texts."""
        pooled = [w.pooled for w in some if w.pooled is not None]
        return Words(torch.stack([w.states for w in some]), torch.stack(pooled) if pooled else None)

    def then(self, other: "Words") -> "Words":
        """One batch of two."""
        pooled = [w.pooled for w in (self, other) if w.pooled is not None]
        return Words(torch.cat([self.states, other.states]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Condition:
    """A product in its place, as the channels that the network sees beside its latents.

    channels_Chw  paint mask (1 = repaint) and masked latents: 1 + 4 for a UNet; a fill transformer has 16 masked latents
                  first, then the mask's 8 x 8 pixels of each latent
    size          (H, W) of the picture
    """

    channels_Chw: torch.Tensor
    size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.channels_Chw.shape, *self.size


class StableDiffusion:
    """SD 1.x and 2.x: a UNet on nine channels, guided by a second pass with the negative prompt."""

    pipeline = "StableDiffusionInpaintPipeline"
    two_passes = True

    def __init__(self, path: Path, recipe: Recipe, dtype: torch.dtype, device: str):
        self.recipe, self.dtype, self.device = recipe, dtype, device
        self.pipe = self.load(path, dtype).to(device)
        self.vae, self.factor = self.pipe.vae.eval(), self.pipe.vae_scale_factor
        for _, encoder in self.texts():
            encoder.eval()

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype) -> DiffusionPipeline:
        options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return _load(cls.pipeline, path, dtype, **options)

    def network_of(self, pipe: Any) -> torch.nn.Module:
        return pipe.unet

    def prepare(self) -> None:
        """Make ready to paint, once adapters are in the weights."""
        self.network = self.network_of(self.pipe).eval()
        self.cache = DeepCache(self.network) if self.recipe.cache_every > 1 else None

    def texts(self) -> list[tuple[Any, Any]]:
        """(tokenizer, encoder) of each text encoder."""
        return [(self.pipe.tokenizer, self.pipe.text_encoder)]

    def words(self, text: str) -> Words:
        """The text's states [T,D]."""
        (tokenizer, encoder) = self.texts()[0]
        return Words(encoder(_ids(tokenizer, text, self.device))[0][0])

    def condition(self, pixels_1CHW: torch.Tensor, paint_mask_11HW: torch.Tensor) -> torch.Tensor:
        """[C,h,w]; pixels in -1..1, mask 1 = repaint."""
        masked = self.encode(pixels_1CHW * (paint_mask_11HW < 0.5))
        small = F.interpolate(paint_mask_11HW, size=masked.shape[-2:])
        return torch.cat([small, masked], 1)[0]

    def encode(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Latents [N,C,h,w] in float32, the mode of their distribution."""
        latents = self.vae.encode(pixels_NCHW.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    def decode(self, x_NChw: torch.Tensor) -> torch.Tensor:
        """Pixels [N,3,H,W] in about -1..1; large pictures some at a time, in equal parts so that the same kernels run."""
        most = max(1, DECODED_PIXELS // (x_NChw[0, 0].numel() * self.factor**2))
        part = max(n for n in range(1, len(x_NChw) + 1) if len(x_NChw) % n == 0 and n <= most)
        latents = (x_NChw / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)).to(self.vae.dtype)
        return torch.cat([self.vae.decode(some, return_dict=False)[0] for some in latents.split(part)])

    def begin(self, scheduler: Any, size: tuple[int, int]) -> None:
        """Set the scheduler's steps for latents of `size` (h, w)."""
        scheduler.set_timesteps(self.recipe.num_inference_steps, device=self.device)

    def predict(self, seen_NChw: torch.Tensor, t: torch.Tensor, words: Words, reuse: bool) -> torch.Tensor:
        """The network's output [N,C,h,w]; `reuse` runs its outer layers alone, on deep features of the last whole run."""
        network = self.cache.shallow if self.cache and reuse else self.network
        return network(seen_NChw, t, words.states, return_dict=False, **self.added(words, seen_NChw))[0]

    def added(self, words: Words, seen_NChw: torch.Tensor) -> dict[str, Any]:
        return {}


class StableDiffusionXL(StableDiffusion):
    """SDXL: two text encoders, pooled text and the picture's size beside the states."""

    pipeline = "StableDiffusionXLInpaintPipeline"

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype) -> DiffusionPipeline:
        upcast = json.loads((path / "vae" / "config.json").read_text()).get("force_upcast", True)
        # The VAE as it was published overflows in float16.
        parts = {"vae": torch.float32, "default": dtype} if upcast and dtype == torch.float16 else dtype
        return _load(cls.pipeline, path, parts, feature_extractor=None, image_encoder=None, add_watermarker=False)

    def texts(self) -> list[tuple[Any, Any]]:
        return [(self.pipe.tokenizer, self.pipe.text_encoder), (self.pipe.tokenizer_2, self.pipe.text_encoder_2)]

    def words(self, text: str) -> Words:
        """Of each encoder the last layer but one; no text is zeros where the weights were trained so."""
        outs = [
            encoder(_ids(tokenizer, text, self.device), output_hidden_states=True)
            for tokenizer, encoder in self.texts()
        ]
        words = Words(torch.cat([out.hidden_states[-2] for out in outs], -1)[0], outs[-1][0][0])
        if not text and self.pipe.config.get("force_zeros_for_empty_prompt", True):
            return Words(*(torch.zeros_like(part) for part in words if part is not None))
        return words

    def added(self, words: Words, seen_NChw: torch.Tensor) -> dict[str, Any]:
        """As diffusers' pipeline does by default: nothing was cropped or scaled."""
        high, wide = (n * self.factor for n in seen_NChw.shape[-2:])
        sizes = torch.tensor([high, wide, 0, 0, high, wide], dtype=words.states.dtype, device=self.device)
        return {"added_cond_kwargs": {"text_embeds": words.pooled, "time_ids": sizes.expand(len(seen_NChw), -1)}}


class Fill(StableDiffusion):
    """A flow-matching transformer that fills a mask (FluxFillPipeline): guidance is an input, a step is one pass.

    Patches are 2 x 2 latents: where a picture is no multiple of that, a margin is painted and cut off.
    """

    pipeline = "FluxFillPipeline"
    two_passes = False

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype) -> DiffusionPipeline:
        # T5 overflows in float16.
        parts = {"text_encoder_2": torch.bfloat16, "default": dtype} if dtype == torch.float16 else dtype
        return _load(cls.pipeline, path, parts)

    def network_of(self, pipe: Any) -> torch.nn.Module:
        return pipe.transformer

    def texts(self) -> list[tuple[Any, Any]]:
        return [(self.pipe.tokenizer, self.pipe.text_encoder), (self.pipe.tokenizer_2, self.pipe.text_encoder_2)]

    def words(self, text: str) -> Words:
        """T5's states, CLIP's pooled text."""
        (clip_tokenizer, clip), (tokenizer, t5) = self.texts()
        pooled = clip(_ids(clip_tokenizer, text, self.device)).pooler_output[0]
        return Words(t5(_ids(tokenizer, text, self.device))[0][0].to(pooled.dtype), pooled)

    def condition(self, pixels_1CHW: torch.Tensor, paint_mask_11HW: torch.Tensor) -> torch.Tensor:
        margin = [0, -pixels_1CHW.shape[-1] % (2 * self.factor), 0, -pixels_1CHW.shape[-2] % (2 * self.factor)]
        pixels_1CHW = F.pad(pixels_1CHW, margin, mode="replicate")
        paint_mask_11HW = F.pad(paint_mask_11HW, margin, value=1.0)
        masked = self.encode(pixels_1CHW * (1 - paint_mask_11HW))
        return torch.cat([masked, F.pixel_unshuffle(paint_mask_11HW, self.factor)], 1)[0]

    def begin(self, scheduler: Any, size: tuple[int, int]) -> None:
        """Larger pictures stay longer at high noise (dynamic shifting)."""
        n, config = self.recipe.num_inference_steps, scheduler.config
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (most - least)
        mu = size[0] * size[1] // 4 * slope + (low - slope * least)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=mu, device=self.device)

    def predict(self, seen_NChw: torch.Tensor, t: torch.Tensor, words: Words, reuse: bool) -> torch.Tensor:
        n, high, wide = len(seen_NChw), seen_NChw.shape[-2] // 2, seen_NChw.shape[-1] // 2
        ids_hw3 = torch.zeros(high, wide, 3)
        ids_hw3[..., 1] += torch.arange(high)[:, None]
        ids_hw3[..., 2] += torch.arange(wide)
        guided = self.pipe.transformer.config.guidance_embeds
        out_NLC = self.network(
            hidden_states=F.pixel_unshuffle(seen_NChw, 2).flatten(2).transpose(1, 2).contiguous(),
            timestep=t.expand(n).to(seen_NChw.dtype) / 1000,
            guidance=torch.full([n], self.recipe.guidance_scale, device=self.device) if guided else None,
            pooled_projections=words.pooled,
            encoder_hidden_states=words.states,
            txt_ids=torch.zeros(words.states.shape[1], 3, device=self.device, dtype=words.states.dtype),
            img_ids=ids_hw3.reshape(-1, 3).to(self.device, words.states.dtype),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out_NLC.transpose(1, 2).unflatten(2, (high, wide)), 2)


def family_of(path: Path) -> type[StableDiffusion]:
    """The class for what the folder's model_index.json names; `files.check_weights` has seen that it is one of them."""
    name = json.loads((path / "model_index.json").read_text())["_class_name"]
    return next(f for f in (StableDiffusion, StableDiffusionXL, Fill) if f.pipeline == name)


def _load(name: str, path: Path, dtype: Any, **options: Any) -> DiffusionPipeline:
    return getattr(diffusers, name).from_pretrained(path, dtype=dtype, use_safetensors=True, **options)


def _ids(tokenizer: Any, text: str, device: str) -> torch.Tensor:
    """Token numbers [1,T], filled up to the longest text that the encoder takes."""
    return tokenizer(
        text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids.to(device)
