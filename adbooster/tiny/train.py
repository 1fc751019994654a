"""Training of the embedded models: one resumable loop, one loss a model.

Shapes: B batch, C channels, H W pixels, h w latents, T tokens. Pictures are uint8 in memory maps until they are used.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from open_clip import CLIP, CustomTextCLIP
from PIL import Image, ImageDraw
from torch import nn
from transformers import (
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from adbooster.tiny import texts, world

log = logging.getLogger(__name__)
SAVE_EVERY_S = 120
TEXTS = 6  # training texts of a picture
MASKS = 2048  # distinct masks that the painter learns from
PERCEPTUAL = 0.05
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
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=device == "cuda")
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
    log.info("%s done: %d steps in %.1f min", name, state["step"], state["seconds"] / 60)
    return net.eval(), state


@torch.no_grad()
def _ema(ema: dict, net: nn.Module, decay: float) -> None:
    now = net.state_dict()
    floating = [k for k, v in now.items() if v.is_floating_point()]
    torch._foreach_lerp_([ema[k] for k in floating], [now[k] for k in floating], 1 - decay)
    for k in now.keys() - set(floating):
        ema[k].copy_(now[k])


def _save(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer, ema: dict | None, state: dict) -> None:
    torch.save(
        {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema, "state": state}, f"{path}.tmp"
    )
    Path(f"{path}.tmp").replace(path)


class Pictures:
    """The composed training set on disk: `images` [N,S,S,3], and what each shows.

    On a GPU they are copied to its memory once: 40,000 pictures of 256 px are 8 GB.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.labels: list[tuple[str, str | None]] = [
            (p, s) for p, s in json.loads((folder / "labels.json").read_text())
        ]
        self.scenic = np.array([i for i, (_, scene) in enumerate(self.labels) if scene])
        self.kinds = sorted(set(self.labels), key=str)
        number = {kind: i for i, kind in enumerate(self.kinds)}
        self.kind_of = np.array([number[label] for label in self.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: np.ndarray, device: str) -> torch.Tensor:
        """float [B,3,S,S] in [-1,1]"""
        if device == "cuda":
            u8 = self._resident[torch.from_numpy(index).to(device)]
        else:
            u8 = torch.from_numpy(self.images[index])
        return u8.permute(0, 3, 1, 2).float() / 127.5 - 1

    @cached_property
    def _resident(self) -> torch.Tensor:
        out = torch.empty(self.images.shape, dtype=torch.uint8, device="cuda")
        for at in range(0, len(self), 2048):
            out[at : at + 2048] = torch.from_numpy(np.ascontiguousarray(self.images[at : at + 2048]))
        return out


def token_ids(pictures: Pictures, tokenizer: CLIPTokenizer, path: Path) -> torch.Tensor:
    """int16 [N,TEXTS,T]: `TEXTS` training texts of every picture as tokens, written once."""
    if not path.exists():
        rng = np.random.default_rng(8)
        words = [texts.training_text(p, s, rng) for p, s in pictures.labels for _ in range(TEXTS)]
        ids = tokenizer(words, padding="max_length", truncation=True, return_tensors="pt").input_ids
        torch.save(ids.view(len(pictures), TEXTS, -1).short(), f"{path}.tmp")
        Path(f"{path}.tmp").replace(path)
    return torch.load(path, weights_only=True)


def vae_loss(
    vae: AutoencoderKL, pictures: Pictures, device: str, size: int, likeness: "Likeness | None" = None
) -> LossOfStep:
    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([1, step])
        x_BCHW = _turned(pictures.batch(rng.integers(len(pictures), size=size), device))
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x_BCHW).latent_dist
            y_BCHW = vae.decode(posterior.sample(torch.Generator(device).manual_seed(step))).sample
        return _picture_loss(x_BCHW, y_BCHW.float(), likeness) + 1e-6 * posterior.kl().mean()

    return loss_of


def decoder_loss(
    vae: AutoencoderKL, pictures: Pictures, device: str, size: int, likeness: "Likeness | None" = None
) -> LossOfStep:
    """The same on the latents' mode, for the decoder alone: what it decodes after sampling carries no encoder noise."""

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([6, step])
        x_BCHW = _turned(pictures.batch(rng.integers(len(pictures), size=size), device))
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x_BCHW).latent_dist.mode()
            y_BCHW = vae.decode(latents).sample
        return _picture_loss(x_BCHW, y_BCHW.float(), likeness)

    return loss_of


def _turned(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Half of the pictures mirrored: to a network of pictures alone, twice as many."""
    half = len(x_BCHW) // 2
    return torch.cat([x_BCHW[:half], x_BCHW[half:].flip(-1)])


def _picture_loss(x_BCHW: torch.Tensor, y_BCHW: torch.Tensor, likeness: "Likeness | None") -> torch.Tensor:
    """L1 of the pixels and of their gradients (blur costs twice), and how unlike a network finds them."""
    edges = sum(F.l1_loss(x_BCHW.diff(dim=d), y_BCHW.diff(dim=d)) for d in (2, 3))
    loss = F.l1_loss(x_BCHW, y_BCHW) + edges
    return loss if likeness is None else loss + PERCEPTUAL * likeness(x_BCHW, y_BCHW)


class Likeness:
    """How unlike two pictures are to the first layers of the ranker's image tower: a perceptual loss in the manner of
    LPIPS (Zhang et al., 2018), on features of unit length."""

    def __init__(self, clip: CustomTextCLIP, mean: Sequence[float], std: Sequence[float], device: str):
        self.trunk = cast(nn.Module, clip.visual.trunk).to(device).eval().requires_grad_(False)
        self.mean_C, self.std_C = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
        self.device = device

    def __call__(self, x_BCHW: torch.Tensor, y_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self._features(x_BCHW)
        found = self._features(y_BCHW)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in zip(wanted, found, strict=True)]).mean()

    def _features(self, x_BCHW: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast(self.device, torch.bfloat16):
            layers = self.trunk.forward_intermediates(  # pyright: ignore[reportCallIssue]  # timm's
                ((x_BCHW + 1) / 2 - self.mean_C) / self.std_C, indices=[0, 1, 2], intermediates_only=True
            )
        return [F.normalize(layer.float(), dim=1) for layer in layers]


def clip_loss(
    model: CLIP | CustomTextCLIP,
    pictures: Pictures,
    ids_NVT: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: str,
    size: int,
    seed: int = 2,
) -> LossOfStep:
    """Symmetric InfoNCE in which every picture of the same product and scene is a right answer."""
    size_px = cast("int | tuple[int, int]", model.visual.image_size)
    side_px = size_px[0] if isinstance(size_px, tuple) else size_px
    mean_C, std_C = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))
    ids_NVT = ids_NVT.to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, step])
        index = rng.integers(len(pictures), size=size)
        x_BCHW = F.interpolate(pictures.batch(index, device), side_px, mode="bilinear", antialias=True)
        if rng.uniform() < 0.3:  # generated pictures are softer than composed ones
            x_BCHW = F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
        ids_BT = ids_NVT[_index(index, device), _index(rng.integers(TEXTS, size=size), device)].long()
        with torch.autocast(device, torch.bfloat16):
            image_BD, text_BD, scale = model(((x_BCHW + 1) / 2 - mean_C) / std_C, ids_BT)
        logits_BB = scale.clamp(max=100) * image_BD.float() @ text_BD.float().T
        kind_B = _index(pictures.kind_of[index], device)
        same = (kind_B[:, None] == kind_B).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)) / 2

    return loss_of


def _index(numbers: np.ndarray, device: str) -> torch.Tensor:
    return torch.from_numpy(numbers).to(device)


def blip_loss(
    model: BlipForConditionalGeneration, processor: BlipProcessor, pictures: Pictures, device: str, size: int
) -> LossOfStep:
    images = processor.image_processor
    mean_C, std_C = (torch.tensor(v, device=device)[:, None, None] for v in (images.image_mean, images.image_std))
    captions = processor.tokenizer([world.caption(*k) for k in pictures.kinds], padding=True, return_tensors="pt")
    ids_KT, mask_KT = captions.input_ids.to(device), captions.attention_mask.to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([3, step])
        index = rng.integers(len(pictures), size=size)
        kind_B = _index(pictures.kind_of[index], device)
        ids_BT, mask_BT = ids_KT[kind_B], mask_KT[kind_B]
        x_BCHW = F.interpolate(pictures.batch(index, device), images.size["height"], mode="bilinear", antialias=True)
        labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
        with torch.autocast(device, torch.bfloat16):
            return model(((x_BCHW + 1) / 2 - mean_C) / std_C, ids_BT, mask_BT, labels=labels_BT).loss

    return loss_of


def scene_loss(model: nn.Module, pictures: Pictures, device: str, size: int, side_px: int) -> LossOfStep:
    """Which scene a picture shows, among `world.SCENES` in their order; packshots are left out."""
    scenes = list(world.SCENES)
    truth_N = torch.tensor([scenes.index(cast(str, pictures.labels[i][1])) for i in pictures.scenic]).to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([9, step])
        at = rng.integers(len(pictures.scenic), size=size)
        x_BCHW = _turned(pictures.batch(pictures.scenic[at], device))
        x_BCHW = F.interpolate(x_BCHW, side_px, mode="bilinear", antialias=True)
        if rng.uniform() < 0.5:  # generated pictures are softer than composed ones
            x_BCHW = F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)
        with torch.autocast(device, torch.bfloat16):
            return F.cross_entropy(model(x_BCHW).float(), truth_N[_index(at, device)], label_smoothing=0.05)

    return loss_of


def writer_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, device: str, size: int) -> LossOfStep:
    """Next-token prediction of answers alone, each after the request that it answers."""
    end, pad = cast(int, tokenizer.eos_token_id), cast(int, tokenizer.pad_token_id)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([10, step])
        asked, answered = zip(*(texts.written_example(rng) for _ in range(size)), strict=True)
        before = tokenizer([f"{message}\n" for message in asked]).input_ids
        rows = [(b, [*a, end]) for b, a in zip(before, tokenizer(list(answered)).input_ids, strict=True)]
        longest = max(len(b) + len(a) for b, a in rows)
        ids_BT = torch.tensor([b + a + [pad] * (longest - len(b) - len(a)) for b, a in rows]).to(device)
        wanted = [[-100] * len(b) + a + [-100] * (longest - len(b) - len(a)) for b, a in rows]
        mask_BT = (ids_BT != pad).long()
        with torch.autocast(device, torch.bfloat16):
            return model(ids_BT, mask_BT, labels=torch.tensor(wanted).to(device)).loss

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
    """Encode every scene twice, as it is and mirrored, each with its own mask: its latents and those of its masked
    picture, [2N,4,h,w] fp16, and the mask [2N,1,h,w]."""
    if path.exists():
        return torch.load(path, weights_only=True)
    parts: dict[str, list] = {"image": [], "masked": [], "mask": []}
    side_px = pictures.images.shape[1]
    masks = np.stack([random_mask(side_px, np.random.default_rng([4, i])) for i in range(MASKS)])
    masks_M1HW = torch.from_numpy(masks.astype(np.uint8))[:, None].to(device)
    rng = np.random.default_rng(4)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    for mirrored in (False, True):
        for at in range(0, len(pictures.scenic), size):
            index = pictures.scenic[at : at + size]
            x_BCHW = pictures.batch(index, device)
            x_BCHW = x_BCHW.flip(-1) if mirrored else x_BCHW
            mask_B1HW = masks_M1HW[_index(rng.integers(MASKS, size=len(index)), device)].float()
            with torch.autocast(device, torch.bfloat16):
                image = vae.encode(x_BCHW).latent_dist.mode()
                masked = vae.encode(x_BCHW * (mask_B1HW < 0.5)).latent_dist.mode()
            for key, value in (("image", image), ("masked", masked)):
                parts[key].append((value.float() * vae.config.scaling_factor).half())
            parts["mask"].append(F.interpolate(mask_B1HW, scale_factor=1 / factor).half())
    blank = (
        vae.encode(torch.zeros_like(pictures.batch(np.array([0]), device))).latent_dist.mode()
        * vae.config.scaling_factor
    )
    cache = {k: torch.cat(v).cpu() for k, v in parts.items()} | {"blank": blank.half().cpu()}
    torch.save(cache, path)
    return cache


def unet_loss(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    ids_NVT: torch.Tensor,
    empty_T: torch.Tensor,
    scheduler: DPMSolverMultistepScheduler,
    cache: dict,
    pictures: Pictures,
    device: str,
    size: int,
) -> LossOfStep:
    """Inpainting on cached latents: a quarter of the pictures wholly masked, a tenth without text; v-prediction."""
    alphas = scheduler.alphas_cumprod.to(device)
    cache = {k: v.to(device) for k, v in cache.items()}
    ids_MVT, empty_T = ids_NVT[torch.from_numpy(pictures.scenic)].to(device), empty_T.to(device)

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([5, step])
        at = _index(rng.integers(len(cache["image"]), size=size), device)
        x, masked, mask = (cache[k][at].float() for k in ("image", "masked", "mask"))
        whole = _index(rng.uniform(size=size) < 0.25, device)[:, None, None, None]
        masked = torch.where(whole, cache["blank"].float(), masked)
        mask = torch.where(whole, torch.ones_like(mask), mask)
        ids_BT = ids_MVT[at % len(ids_MVT), _index(rng.integers(TEXTS, size=size), device)]
        ids_BT = torch.where(_index(rng.uniform(size=(size, 1)) < 0.1, device), empty_T, ids_BT).long()
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
