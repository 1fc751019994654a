"""Stable Diffusion inpainting as an outpainter: everything but the product is painted anew.

Shapes: N pictures, C channels, H x W pixels, h x w latents, T tokens, D text width.
"""

import inspect
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin, StableDiffusionInpaintPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.recipe import Recipe
from adbooster.models.files import check_recipe, check_weights

log = logging.getLogger(__name__)
TEXTS_KEPT = 4096

diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Condition:
    """A product in its place as input of the UNet: paint mask [1,h,w] (1 = repaint) and masked latents [4,h,w]."""

    channels_5hw: torch.Tensor


@dataclass(frozen=True)
class Painting:
    """One candidate to paint."""

    condition: Condition
    prompt: str
    negative_prompt: str
    seed: int


def load_pipeline(path: Path, dtype: torch.dtype, device: str) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(
        path,
        torch_dtype=dtype,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe.to(device)


def _fuse(pipe: StableDiffusionInpaintPipeline, adapters: Iterable[tuple[Path, float]]) -> None:
    """Add LoRA adapters (safetensors files, with their strength) to the weights for good: they cost nothing to run.

    raises ConfigError for a file that adapts nothing of these weights: it must not be left out in silence
    """
    for i, (path, scale) in enumerate(adapters):
        before = {
            name: p.detach().clone() for name, p in pipe.unet.named_parameters() if "attn" in name or "conv" in name
        }
        try:
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"a{i}")
            pipe.fuse_lora(lora_scale=scale, adapter_names=[f"a{i}"])
            pipe.unload_lora_weights()
        except (ValueError, RuntimeError, LookupError, OSError) as e:
            raise ConfigError(f"the adapter {path} does not fit the weights: {e}") from e
        if scale and all(torch.equal(p, before.get(name, p)) for name, p in pipe.unet.named_parameters()):
            raise ConfigError(
                f"the adapter {path} changes nothing in the UNet of these weights; is it for another model?"
            )


class Outpainter:
    """Paints batches of unrelated candidates with one set of weights under one recipe."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        device: str,
        dtype: str,
        batch: int,
        adapters: Iterable[tuple[Path, float]] = (),
        compiled: bool = False,
    ):
        check_weights(path)
        check_recipe(recipe, path)
        self.recipe, self.device, self.batch = recipe, device, batch
        # On the CPU weights stay float32 and autocast picks what gains from bfloat16.
        self.dtype = torch.float32 if device == "cpu" else getattr(torch, dtype)
        self.autocast = device == "cpu" and dtype == "bfloat16"
        pipe = load_pipeline(path, self.dtype, device)
        _fuse(pipe, adapters)
        self.unet, self.vae, self.text_encoder = (m.eval() for m in (pipe.unet, pipe.vae, pipe.text_encoder))
        if compiled:  # shapes are fixed by the padding below, so one graph a placement is all it takes
            self.unet = torch.compile(self.unet, dynamic=False)
        self.tokenizer, self.factor = pipe.tokenizer, pipe.vae_scale_factor
        wanted = scheduler_class(recipe.scheduler) if recipe.scheduler else type(pipe.scheduler)
        self.scheduler = wanted.from_config(pipe.scheduler.config, **recipe.scheduler_options)
        self.states: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def condition(self, image_u8: np.ndarray, product_mask_u8: np.ndarray) -> Condition:
        """The UNet's input for a product, shared by all its candidates and cohorts: one VAE pass.

        image_u8         uint8 [H,W,3], RGB; the product, anything elsewhere
        product_mask_u8  uint8 [H,W], 255 = product
        raises           ConfigError if H or W is not a multiple of the VAE's factor
        """
        high, wide = product_mask_u8.shape
        if high % self.factor or wide % self.factor:
            raise ConfigError(f"{wide} x {high} px cannot be painted: the VAE needs multiples of {self.factor}")
        paint_mask_11HW = torch.from_numpy(product_mask_u8 < 128).float()[None, None].to(self.device)
        pixels_1CHW = torch.from_numpy(image_u8.copy()).to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            encoded = self.vae.encode((pixels_1CHW * (paint_mask_11HW < 0.5)).to(self.dtype)).latent_dist.mode()
        small = torch.nn.functional.interpolate(paint_mask_11HW, size=encoded.shape[-2:])
        return Condition(torch.cat([small, encoded.float() * self.vae.config.scaling_factor], 1)[0])

    def paint(self, paintings: list[Painting]) -> list[np.ndarray]:
        """Paint every candidate; uint8 [H,W,3] each, in order.

        A picture depends on its own painting alone: each has its own generator, and every batch is filled up to the
        same size, so that the same kernels run whatever else is in it. When memory runs out the batch is halved for
        good, and painting goes on; `batch` is the current size.
        """
        out: list = [None] * len(paintings)
        shapes = [tuple(p.condition.channels_5hw.shape) for p in paintings]
        for shape in dict.fromkeys(shapes):
            todo = [i for i, s in enumerate(shapes) if s == shape]
            while todo:
                some = [paintings[i] for i in todo[: self.batch]]
                try:
                    painted = self._paint_full(some)
                except (torch.OutOfMemoryError, RuntimeError) as e:
                    self._halve(e)
                    continue
                for i, picture in zip(todo, painted, strict=False):
                    out[i] = picture
                todo = todo[len(some) :]
        return out

    def _halve(self, e: Exception) -> None:
        lacking = isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)
        if not lacking or self.batch == 1:
            raise e
        if self.device == "cuda":
            torch.cuda.empty_cache()
        self.batch //= 2
        log.warning("out of memory: painting goes on in batches of %d", self.batch)

    def _paint_full(self, paintings: list[Painting]) -> np.ndarray:
        full = paintings + [paintings[-1]] * (self.batch - len(paintings))
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return self._paint_batch(full)[: len(paintings)]

    def _paint_batch(self, paintings: list[Painting]) -> np.ndarray:
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(self.recipe.num_inference_steps, device=self.device)
        towards_NTD = self._text([p.prompt for p in paintings])
        both_NTD = torch.cat([self._text([p.negative_prompt for p in paintings]), towards_NTD])
        condition = torch.stack([p.condition.channels_5hw for p in paintings])
        generators = [
            torch.Generator().manual_seed(p.seed) for p in paintings
        ]  # on the CPU: the device does not matter
        options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        shape = condition[0, 1:].shape
        x_NChw = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)
        x_NChw = x_NChw * scheduler.init_noise_sigma
        first, last = (share * len(scheduler.timesteps) for share in self.recipe.guidance_interval)
        for i, t in enumerate(scheduler.timesteps):
            guided = self.recipe.guidance_scale > 1 and first <= i < last
            scaled = torch.cat([scheduler.scale_model_input(x_NChw, t), condition], 1).to(self.dtype)
            states_NTD = both_NTD if guided else towards_NTD
            step = self.unet(scaled.repeat(2 if guided else 1, 1, 1, 1), t, states_NTD, return_dict=False)[0].float()
            if guided:
                without, towards = step.chunk(2)
                step = without + self.recipe.guidance_scale * (towards - without)
            x_NChw = scheduler.step(step, t, x_NChw, return_dict=False, **options)[0]
        decoded = self.vae.decode((x_NChw / self.vae.config.scaling_factor).to(self.dtype), return_dict=False)[0]
        pixels = (decoded.float() / 2 + 0.5).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def _text(self, prompts: list[str]) -> torch.Tensor:
        """Text states [N,T,D], each distinct prompt encoded once while it is in use."""
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
            self.states.move_to_end(prompt)
        states = torch.stack([self.states[p] for p in prompts])
        while len(self.states) > TEXTS_KEPT:
            self.states.popitem(last=False)
        return states


def scheduler_class(name: str) -> type:
    scheduler = getattr(diffusers, name, None)
    if not (isinstance(scheduler, type) and issubclass(scheduler, SchedulerMixin)):
        raise ConfigError(
            f"diffusers has no scheduler {name!r}; UniPCMultistepScheduler and LCMScheduler are two it has"
        )
    return scheduler
