"""Training of the embedded models: one resumable loop, one loss a model.

Shapes: B batch, C channels, H W pixels, h w latents, T tokens. Pictures are uint8 in memory maps until they are used.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from open_clip import CLIP, CustomTextCLIP
from PIL import Image, ImageDraw
from torch import nn
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTextModel, CLIPTokenizer

from adbooster.tiny import texts, world

log = logging.getLogger(__name__)
SAVE_EVERY_S = 120
LossOfStep = Callable[[int], torch.Tensor]
Net = TypeVar("Net", bound=nn.Module)


def fit(
    name: str,
    net: Net,
    loss_of: LossOfStep,
    minutes: float,
    lr: float,
    work: Path,
    device: str,
    ema_decay: float = 0.0,
) -> tuple[Net, dict]:
    """Train `net` for `minutes` of training time, in as many sittings as it takes, and return it (its EMA if asked).

    `loss_of(step)` is a function of the step alone (it seeds itself), so a resumed run sees the batches that an
    undisturbed one would. Learning rate: warm-up over 2 % of the budget, then a cosine to 2 % of `lr`.
    """
    path = work / f"{name}.ckpt"
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()} if ema_decay else None
    state = {"step": 0, "seconds": 0.0}
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, state = saved["ema"], saved["state"]
    budget_s, began, saved_at = minutes * 60, time.monotonic() - state["seconds"], time.monotonic()
    while (seconds := time.monotonic() - began) < budget_s:
        share = seconds / budget_s
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, share / 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        loss = loss_of(state["step"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        state = {"step": state["step"] + 1, "seconds": seconds}
        if ema is not None:
            _ema(ema, net, min(ema_decay, (1 + state["step"]) / (10 + state["step"])))
        if state["step"] % 50 == 0:
            log.info("%s step %d %.1f min loss %.4f", name, state["step"], seconds / 60, loss.item())
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            _save(path, net, optimizer, ema, state)
            saved_at = time.monotonic()
    _save(path, net, optimizer, ema, state)
    if ema is not None:
        net.load_state_dict(ema)
    return net.eval(), state


def _ema(ema: dict, net: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for k, v in net.state_dict().items():
            if v.is_floating_point():
                ema[k].lerp_(v, 1 - decay)
            else:
                ema[k].copy_(v)


def _save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, ema: dict | None, state: dict) -> None:
    torch.save(
        {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema, "state": state}, f"{path}.tmp"
    )
    Path(f"{path}.tmp").replace(path)


class Pictures:
    """The composed training set on disk: `images` [N,S,S,3], `masks` [N,S,S], and what each shows."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.labels: list[tuple[str, str | None]] = [
            (p, s) for p, s in json.loads((folder / "labels.json").read_text())
        ]
        self.scenic = np.array([i for i, (_, scene) in enumerate(self.labels) if scene])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: np.ndarray, device: str) -> torch.Tensor:
        """float [B,3,S,S] in [-1,1]"""
        u8 = torch.from_numpy(self.images[np.sort(index)]).to(device)
        return u8.permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_loss(vae: AutoencoderKL, pictures: Pictures, device: str, size: int = 16) -> LossOfStep:
    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([1, step])
        x_BCHW = pictures.batch(rng.integers(len(pictures), size=size), device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x_BCHW).latent_dist
            y_BCHW = vae.decode(posterior.sample(torch.Generator(device).manual_seed(step))).sample
        return _picture_loss(x_BCHW, y_BCHW.float()) + 1e-6 * posterior.kl().mean()

    return loss_of


def decoder_loss(vae: AutoencoderKL, pictures: Pictures, device: str, size: int = 24) -> LossOfStep:
    """The same on the latents' mode, for the decoder alone: what it decodes after sampling carries no encoder noise."""

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([6, step])
        x_BCHW = pictures.batch(rng.integers(len(pictures), size=size), device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x_BCHW).latent_dist.mode()
            y_BCHW = vae.decode(latents).sample
        return _picture_loss(x_BCHW, y_BCHW.float())

    return loss_of


def _picture_loss(x_BCHW: torch.Tensor, y_BCHW: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels and of their gradients: blur costs twice."""
    edges = sum(F.l1_loss(x_BCHW.diff(dim=d), y_BCHW.diff(dim=d)) for d in (2, 3))
    return F.l1_loss(x_BCHW, y_BCHW) + edges


def clip_loss(
    model: CLIP | CustomTextCLIP,
    pictures: Pictures,
    tokenizer: CLIPTokenizer,
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
    size: int = 192,
) -> LossOfStep:
    """Symmetric InfoNCE in which every picture of the same product and scene is a right answer."""
    size_px = cast("int | tuple[int, int]", model.visual.image_size)
    side_px = size_px[0] if isinstance(size_px, tuple) else size_px
    mean_C, std_C = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([2, step])
        index = np.sort(rng.integers(len(pictures), size=size))
        labels = [pictures.labels[i] for i in index]
        x_BCHW = F.interpolate(pictures.batch(index, device), side_px, mode="bilinear", antialias=True)
        if rng.uniform() < 0.3:  # generated pictures are softer than composed ones
            x_BCHW = F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
        words = [texts.training_text(p, s, rng) for p, s in labels]
        ids_BT = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        with torch.autocast(device, torch.bfloat16):
            image_BD, text_BD, scale = model(((x_BCHW + 1) / 2 - mean_C) / std_C, ids_BT)
        logits_BB = scale.clamp(max=100) * image_BD.float() @ text_BD.float().T
        same = torch.tensor([[a == b for b in labels] for a in labels], device=device).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2

    return loss_of


def blip_loss(
    model: BlipForConditionalGeneration, processor: BlipProcessor, pictures: Pictures, device: str, size: int = 64
) -> LossOfStep:
    images = processor.image_processor
    mean_C, std_C = (torch.tensor(v, device=device)[:, None, None] for v in (images.image_mean, images.image_std))

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([3, step])
        index = np.sort(rng.integers(len(pictures), size=size))
        words = [world.caption(*pictures.labels[i]) for i in index]
        text = processor.tokenizer(words, padding=True, return_tensors="pt").to(device)
        x_BCHW = F.interpolate(pictures.batch(index, device), images.size["height"], mode="bilinear", antialias=True)
        labels_BT = text.input_ids.masked_fill(text.attention_mask == 0, -100)
        with torch.autocast(device, torch.bfloat16):
            return model(
                ((x_BCHW + 1) / 2 - mean_C) / std_C, text.input_ids, text.attention_mask, labels=labels_BT
            ).loss

    return loss_of


def random_mask(side_px: int, rng: np.random.Generator) -> np.ndarray:
    """A generic inpainting mask, 1 = repaint: boxes and strokes, or all but a box. Nothing is known of products."""
    inverted = rng.uniform() < 0.5
    picture = Image.new("L", (side_px, side_px))
    draw = ImageDraw.Draw(picture)
    for _ in range(1 if inverted else int(rng.integers(1, 4))):
        w, h = rng.uniform(0.25, 0.7, 2) * side_px
        x, y = rng.uniform(0, 1, 2) * (side_px - np.array([w, h]))
        draw.rectangle([x, y, x + w, y + h], fill=255)
    if not inverted:
        points = [tuple(p) for p in rng.uniform(0, side_px, (int(rng.integers(2, 6)), 2))]
        draw.line(points, fill=255, width=int(side_px * rng.uniform(0.05, 0.2)))
    white = np.asarray(picture) > 127
    return (~white if inverted else white).astype(np.float32)


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, pictures: Pictures, device: str, path: Path, size: int = 64) -> dict:
    """Encode every scene once: its latents and those of its masked picture, [N,4,h,w] fp16, and the mask [N,1,h,w]."""
    if path.exists():
        return torch.load(path, weights_only=True)
    parts: dict[str, list] = {"image": [], "masked": [], "mask": []}
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    for at in range(0, len(pictures.scenic), size):
        index = pictures.scenic[at : at + size]
        x_BCHW = pictures.batch(index, device)
        side_px = x_BCHW.shape[-1]
        masks = np.stack([random_mask(side_px, np.random.default_rng([4, int(i)])) for i in index])
        mask_B1HW = torch.from_numpy(masks)[:, None].to(device)
        with torch.autocast(device, torch.bfloat16):
            image = vae.encode(x_BCHW).latent_dist.mode()
            masked = vae.encode(x_BCHW * (mask_B1HW < 0.5)).latent_dist.mode()
        for key, value in (("image", image), ("masked", masked)):
            parts[key].append((value.float() * vae.config.scaling_factor).half().cpu())
        parts["mask"].append(F.interpolate(mask_B1HW, scale_factor=1 / factor).half().cpu())
    blank = (
        vae.encode(torch.zeros_like(pictures.batch(np.array([0]), device))).latent_dist.mode()
        * vae.config.scaling_factor
    )
    cache = {k: torch.cat(v) for k, v in parts.items()} | {"blank": blank.half().cpu()}
    torch.save(cache, path)
    return cache


def unet_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DPMSolverMultistepScheduler,
    cache: dict,
    pictures: Pictures,
    device: str,
    size: int = 48,
) -> LossOfStep:
    """Inpainting on cached latents: a quarter of the pictures wholly masked, a tenth without text; v-prediction."""
    alphas = scheduler.alphas_cumprod.to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([5, step])
        at = np.sort(rng.integers(len(pictures.scenic), size=size))
        x, masked, mask = (cache[k][at].to(device).float() for k in ("image", "masked", "mask"))
        whole = torch.from_numpy(rng.uniform(size=size) < 0.25).to(device)[:, None, None, None]
        masked = torch.where(whole, cache["blank"].to(device).float(), masked)
        mask = torch.where(whole, torch.ones_like(mask), mask)
        words = [texts.training_text(*pictures.labels[int(i)], rng) for i in pictures.scenic[at]]
        words = ["" if rng.uniform() < 0.1 else w for w in words]
        ids_BT = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        generator = torch.Generator(device).manual_seed(step)
        noise = torch.randn(x.shape, generator=generator, device=device)
        t_B = torch.randint(len(alphas), (size,), generator=generator, device=device)
        a = alphas[t_B].sqrt()[:, None, None, None]
        s = (1 - alphas[t_B]).sqrt()[:, None, None, None]
        with torch.autocast(device, torch.bfloat16):
            states_BTD = text_encoder(ids_BT).last_hidden_state
            v = unet(torch.cat([a * x + s * noise, mask, masked], 1), t_B, states_BTD).sample
        return F.mse_loss(v.float(), a * noise - s * x)

    return loss_of
