"""Make the embedded models again: `python -m adbooster.tiny.build --work <folder>` (about five hours on two cores;
with `--device cuda --workers 16` about a quarter of an hour on one large GPU).

Resumable: every stage leaves a checkpoint in the work folder and continues from it. Each model gets its own budget
of training minutes; more is better. Results go to `adbooster/tiny/models/`, each with a card.json.
"""

import argparse
import json
import logging
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from adbooster.tiny import nets, texts, train, world

log = logging.getLogger(__name__)
MODELS = Path(__file__).parent / "models"
STAGES = ("rank", "judge", "caption", "scenes", "vae", "decoder", "unet", "writer")
RATES = {
    "rank": 1e-3,
    "judge": 1.5e-3,
    "caption": 1e-3,
    "scenes": 2e-3,
    "vae": 2e-3,
    "decoder": 1e-3,
    "unet": 1e-3,
    "writer": 1.5e-3,
}
MINUTES = {
    "cpu": {"rank": 8, "judge": 8, "caption": 10, "scenes": 3, "vae": 60, "decoder": 15, "unet": 180, "writer": 12},
    "cuda": {"rank": 0.6, "judge": 0.7, "caption": 0.7, "scenes": 0.2, "vae": 5, "decoder": 1, "unet": 5, "writer": 1},
}
BATCH = {
    "cpu": {"rank": 192, "judge": 192, "caption": 64, "scenes": 64, "vae": 16, "decoder": 24, "unet": 48, "writer": 32},
    "cuda": {
        "rank": 768,
        "judge": 768,
        "caption": 256,
        "scenes": 256,
        "vae": 64,
        "decoder": 64,
        "unet": 512,
        "writer": 128,
    },
}


def compose_one(i: int) -> tuple[np.ndarray, str, str | None]:
    """Picture i of the training set: held-out products never, every fifth a packshot, half with turned hue."""
    rng = np.random.default_rng([0, i])
    product = world.SEEN[int(rng.integers(len(world.SEEN)))]
    scene = None if i % 5 == 0 else list(world.SCENES)[int(rng.integers(len(world.SCENES)))]
    hue = bool(rng.uniform() < 0.5)
    if scene is None:
        image, _ = world.packshot(product, nets.SIDE_PX, seed=i, hue=hue)
    else:
        image, _ = world.compose(scene, product, nets.SIDE_PX, seed=i, hue=hue)
    return image, product, scene


def compose_all(work: Path, n: int, workers: int) -> train.Pictures:
    """Compose the training set once, with seeds 0..n-1 (checks and catalog use seeds from 10**6 up)."""
    if not (work / "labels.json").exists():
        side = nets.SIDE_PX
        images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, (n, side, side, 3))
        labels = []
        with ProcessPoolExecutor(workers) as pool:
            for i, (image, product, scene) in enumerate(pool.map(compose_one, range(n), chunksize=32)):
                images[i] = image
                labels.append((product, scene))
        images.flush()
        (work / "labels.json").write_text(json.dumps(labels))
    return train.Pictures(work)


@dataclass(frozen=True)
class Workshop:
    """Where one building goes on, on what device, and where finished models go; pictures are composed when first asked for."""

    work: Path
    models: Path
    device: str
    compiled: bool
    pictures_in_all: int
    workers: int

    @cached_property
    def pictures(self) -> train.Pictures:
        return compose_all(self.work, self.pictures_in_all, self.workers)

    def fit(self, stage: str, net: nn.Module, loss: train.LossOfStep, minutes: float, **more: float) -> tuple:
        return train.fit(stage, net, loss, minutes, RATES[stage], self.work, self.device, **more)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer of this world, made once."""
        folder = self.work / "tokenizer"
        return CLIPTokenizer.from_pretrained(folder) if folder.exists() else texts.clip_tokenizer(folder)

    @property
    def token_ids(self) -> torch.Tensor:
        return train.token_ids(self.pictures, self.tokenizer, self.work / "ids.pt")

    def vae(self) -> AutoencoderKL:
        vae = AutoencoderKL.from_pretrained(self.work / "vae", use_safetensors=True)
        return vae.to(self.device)  # pyright: ignore[reportArgumentType]  # diffusers' `to` is untyped

    def rank(self) -> open_clip.CustomTextCLIP:
        clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{self.models / 'rank'}")
        return cast("open_clip.CustomTextCLIP", clip)

    def likeness(self) -> train.Likeness:
        return train.Likeness(self.rank(), nets.CLIP_MEAN, nets.CLIP_STD, self.device)


def build(stage: str, minutes: float, shop: Workshop) -> None:
    """Train one model and write it where the library's tiny preset finds it."""
    torch.manual_seed(STAGES.index(stage))
    device, size = shop.device, BATCH[shop.device][stage]
    if stage == "writer":
        tokenizer = texts.writer_tokenizer(shop.work / "writer")
        model = nets.new_writer(tokenizer)
        model, state = shop.fit(stage, model, train.writer_loss(model, tokenizer, device, size), minutes)
        nets.save_writer(shop.models / stage, model, tokenizer)
    elif stage in nets.CLIPS:
        model = nets.new_clip(stage, shop.tokenizer)
        clip = train.clip_loss(
            model,
            shop.pictures,
            shop.token_ids,
            nets.CLIP_MEAN,
            nets.CLIP_STD,
            device,
            size,
            seed=STAGES.index(stage) + 20,
        )
        model, state = shop.fit(stage, model, clip, minutes)
        nets.save_clip(shop.models / stage, stage, model, shop.tokenizer)
    elif stage == "caption":
        processor = nets.blip_processor(texts.bert_tokenizer(shop.work / "bert"))
        model = nets.new_blip(processor.tokenizer)
        model, state = shop.fit(stage, model, train.blip_loss(model, processor, shop.pictures, device, size), minutes)
        nets.save_blip(shop.models / stage, model, processor)
    elif stage == "scenes":
        model = nets.new_scene_classifier(len(world.SCENES))
        model, state = shop.fit(
            stage, model, train.scene_loss(model, shop.pictures, device, size, nets.SCENE_PX), minutes
        )
        nets.save_scene_classifier(shop.models / stage, model)
    else:
        state = {"vae": build_vae, "decoder": build_decoder, "unet": build_unet}[stage](minutes, size, shop)
    _card(stage, state, minutes, shop)


def build_vae(minutes: float, size: int, shop: Workshop) -> dict:
    vae = nets.new_vae()
    _prepare(shop, vae.encoder, vae.decoder)
    loss = train.vae_loss(vae, shop.pictures, shop.device, size, shop.likeness())
    vae, state = shop.fit("vae", vae, loss, minutes)
    nets.narrow_posterior(vae)
    vae.save_pretrained(shop.work / "vae")
    plain = shop.vae()
    plain.register_to_config(scaling_factor=_scaling_factor(plain, shop.pictures, shop.device))
    plain.save_pretrained(shop.work / "vae")
    return state


def build_decoder(minutes: float, size: int, shop: Workshop) -> dict:
    """The decoder alone goes on learning, at the end as the mean of its last steps."""
    vae = shop.vae()
    assert vae.post_quant_conv is not None
    _prepare(shop, vae.decoder)
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    loss = train.decoder_loss(vae, shop.pictures, shop.device, size, shop.likeness())
    _, state = shop.fit("decoder", half, loss, minutes, ema_decay=0.99)
    vae.save_pretrained(shop.work / "vae")
    return state


def build_unet(minutes: float, size: int, shop: Workshop) -> dict:
    """The painter, on latents of the finished VAE; its text encoder starts from the ranker's."""
    vae = shop.vae()
    cache = train.cache_latents(vae, shop.pictures, shop.device, shop.work / "latents.pt")
    tokenizer = shop.tokenizer
    unet, text_encoder = nets.new_unet(), nets.new_text_encoder(tokenizer, shop.rank())
    empty_T = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0].short()
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    _prepare(shop, unet)
    loss = train.unet_loss(
        unet,
        text_encoder,
        shop.token_ids,
        empty_T,
        nets.new_scheduler(),
        cache,
        shop.pictures,
        shop.device,
        size,
    )
    _, state = shop.fit("unet", both, loss, minutes, ema_decay=0.999)
    nets.save_pipeline(shop.models / "outpaint", vae, unet, text_encoder, tokenizer)
    return state


def _prepare(shop: Workshop, *networks: nn.Module) -> None:
    """On a GPU: the order of memory that its convolutions want, and kernels made for these shapes."""
    if shop.device == "cuda":
        torch.backends.cudnn.benchmark = True
        for net in networks:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            if shop.compiled:
                net.compile(dynamic=False)


@torch.no_grad()
def _scaling_factor(vae: AutoencoderKL, pictures: train.Pictures, device: str) -> float:
    """What brings the latents to a standard deviation of 1, from some 256 pictures."""
    parts = [
        vae.encode(pictures.batch(index, device)).latent_dist.mode()
        for index in np.array_split(np.arange(0, len(pictures), max(1, len(pictures) // 256)), 16)
    ]
    return round(1 / torch.cat(parts).std().item(), 5)


def _card(stage: str, state: dict, minutes: float, shop: Workshop) -> None:
    folder = shop.models / {"vae": "outpaint", "decoder": "outpaint", "unet": "outpaint"}.get(stage, stage)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "card.json"
    card = json.loads(path.read_text()) if path.exists() else {}
    hardware = (
        torch.cuda.get_device_name()
        if shop.device == "cuda"
        else f"{torch.get_num_threads()} CPU cores, {platform.machine()}"
    )
    if stage == "writer":
        data = f"requests made up for {len(world.SEEN)} products in {len(world.SCENES)} scenes, each seen once"
    else:
        shown = f"{len(shop.pictures)} composed pictures of {nets.SIDE_PX} px"
        data = f"{shown}: {len(world.SEEN)} products in {len(world.SCENES)} scenes and on white"
    card[stage] = {
        "data": data,
        "steps": state["step"],
        "batch": BATCH[shop.device][stage],
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
    parser.add_argument("--models", type=Path, default=MODELS, help="folder for the finished models")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile VAE and UNet: worth its one to two minutes in long training only",
    )
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=STAGES, default=STAGES)
    for stage in STAGES:
        parser.add_argument(f"--{stage}-minutes", type=float, help=f"default {MINUTES['cpu'][stage]} on a CPU")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    shop = Workshop(args.work, args.models, args.device, args.compile, args.pictures, args.workers)
    for stage in args.only:
        given = getattr(args, f"{stage}_minutes")
        build(stage, MINUTES[args.device][stage] if given is None else given, shop)


if __name__ == "__main__":
    main()
