"""Make the embedded models again: `python -m adbooster.tiny.build --work <folder>` (about two hours on two cores).

Resumable: every stage leaves a checkpoint in the work folder and continues from it. Each model gets its own budget
of training minutes; more is better. Results go to `adbooster/tiny/models/`, each with a card.json.
"""

import argparse
import json
import logging
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL
from torch import nn

from adbooster.tiny import nets, texts, train, world

log = logging.getLogger(__name__)
MODELS = Path(__file__).parent / "models"
STAGES = ("vae", "decoder", "rank", "judge", "caption", "unet")
MINUTES = {"vae": 13, "decoder": 5, "rank": 6, "judge": 8, "caption": 10, "unet": 50}
RATES = {"vae": 2e-3, "decoder": 1e-3, "rank": 1e-3, "judge": 1.5e-3, "caption": 1e-3, "unet": 1e-3}


def compose_one(i: int) -> tuple[np.ndarray, np.ndarray, str, str | None]:
    """Picture i of the training set: held-out products never, every fifth a packshot, half with turned hue."""
    rng = np.random.default_rng([0, i])
    product = world.SEEN[int(rng.integers(len(world.SEEN)))]
    scene = None if i % 5 == 0 else list(world.SCENES)[int(rng.integers(len(world.SCENES)))]
    hue = bool(rng.uniform() < 0.5)
    if scene is None:
        picture = world.packshot(product, nets.SIDE_PX, seed=i, hue=hue)
    else:
        picture = world.compose(scene, product, nets.SIDE_PX, seed=i, hue=hue)
    return *picture, product, scene


def compose_all(work: Path, n: int, workers: int) -> train.Pictures:
    """Compose the training set once, with seeds 0..n-1 (checks and catalog use seeds from 10**6 up)."""
    if not (work / "labels.json").exists():
        side = nets.SIDE_PX
        images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, (n, side, side, 3))
        masks = np.lib.format.open_memmap(work / "masks.npy", "w+", np.uint8, (n, side, side))
        labels = []
        with ProcessPoolExecutor(workers) as pool:
            for i, (image, mask, product, scene) in enumerate(pool.map(compose_one, range(n), chunksize=64)):
                images[i], masks[i] = image, mask
                labels.append((product, scene))
        images.flush()
        masks.flush()
        (work / "labels.json").write_text(json.dumps(labels))
    return train.Pictures(work)


def build(stage: str, minutes: float, pictures: train.Pictures, work: Path, device: str) -> None:
    """Train one model on the pictures and write it where the library's tiny preset finds it."""
    torch.manual_seed({s: i for i, s in enumerate(STAGES)}[stage])
    fitted = {"minutes": minutes, "lr": RATES[stage], "work": work, "device": device}
    if stage == "vae":
        vae, state = train.fit("vae", vae := nets.new_vae(), train.vae_loss(vae, pictures, device), **fitted)
        nets.narrow_posterior(vae)
        vae.register_to_config(scaling_factor=_scaling_factor(vae, pictures, device))
        vae.save_pretrained(work / "vae")
    elif stage == "decoder":
        vae = nets.AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True)
        vae.to(device)  # pyright: ignore[reportArgumentType]  # diffusers' `to` is untyped
        assert vae.post_quant_conv is not None
        half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
        _, state = train.fit("decoder", half, train.decoder_loss(vae, pictures, device), **fitted)
        vae.save_pretrained(work / "vae")
    elif stage in nets.CLIPS:
        tokenizer = texts.clip_tokenizer(work / "tokenizer")
        model = nets.new_clip(stage, tokenizer)
        loss = train.clip_loss(model, pictures, tokenizer, nets.CLIP_MEAN, nets.CLIP_STD, device)
        model, state = train.fit(stage, model, loss, **fitted)
        nets.save_clip(MODELS / stage, stage, model, tokenizer)
    elif stage == "caption":
        processor = nets.blip_processor(texts.bert_tokenizer(work / "bert"))
        model = nets.new_blip(processor.tokenizer)
        model, state = train.fit(stage, model, train.blip_loss(model, processor, pictures, device), **fitted)
        nets.save_blip(MODELS / stage, model, processor)
    else:
        state = build_outpainter(fitted, pictures, work, device)
    _card(stage, state, pictures, minutes, device)


def build_outpainter(fitted: dict, pictures: train.Pictures, work: Path, device: str) -> dict:
    vae = nets.AutoencoderKL.from_pretrained(work / "vae", use_safetensors=True)
    vae.to(device)  # pyright: ignore[reportArgumentType]  # diffusers' `to` is untyped
    cache = train.cache_latents(vae, pictures, device, work / "latents.pt")
    tokenizer = texts.clip_tokenizer(work / "tokenizer")
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{MODELS / 'rank'}")
    unet, text_encoder = nets.new_unet(), nets.new_text_encoder(tokenizer, cast("open_clip.CustomTextCLIP", clip))
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    loss = train.unet_loss(unet, text_encoder, tokenizer, nets.new_scheduler(), cache, pictures, device)
    _, state = train.fit("unet", both, loss, ema_decay=0.999, **fitted)
    nets.save_pipeline(MODELS / "outpaint", vae, unet, text_encoder, tokenizer)
    return state


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, pictures: train.Pictures, device: str) -> float:
    x_BCHW = pictures.batch(np.arange(0, len(pictures), max(1, len(pictures) // 256)), device)
    return round(1 / vae.encode(x_BCHW).latent_dist.mode().std().item(), 5)


def _card(stage: str, state: dict, pictures: train.Pictures, minutes: float, device: str) -> None:
    folder = MODELS / {"vae": "outpaint", "decoder": "outpaint", "unet": "outpaint"}.get(stage, stage)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "card.json"
    card = json.loads(path.read_text()) if path.exists() else {}
    hardware = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{torch.get_num_threads()} CPU cores, {platform.machine()}"
    )
    card[stage] = {
        "data": f"{len(pictures)} composed pictures of {len(world.SEEN)} products in {len(world.SCENES)} scenes and on white",
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "budget_minutes": minutes,
        "learning_rate": RATES[stage],
        "hardware": hardware,
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the training set and the checkpoints")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=STAGES)
    for stage in STAGES:
        parser.add_argument(f"--{stage}-minutes", type=float, default=MINUTES[stage])
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    pictures = compose_all(args.work, args.pictures, args.workers)
    for stage in args.only:
        build(stage, getattr(args, f"{stage}_minutes"), pictures, args.work, args.device)


if __name__ == "__main__":
    main()
