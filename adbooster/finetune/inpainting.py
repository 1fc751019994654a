"""An inpainting model in training: its loss, what it learns with, and its weights. SD 1.x, 2.x and SDXL.

Which of them it is, the scheduler says and the UNet's own config: nothing here names a model.
Shapes: N pictures, C channels, H x W pixels, h x w latents, T tokens, D text width.
"""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import compute_snr
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn import functional as F

from adbooster.finetune.config import ADAPTER_FILE, Lora

ADAPTER = "default"


class Encoded(NamedTuple):
    """A batch as the UNet learns from it.

    x, masked   float [N,4,h,w], latents of the picture and of the picture without what is painted
    mask        float [N,1,h,w], 1 = repaint
    states      float [N,T,D]; pooled float [N,D] in SDXL, else None
    weight      float [N], 0 = leave out
    noise_seed  N integers: each picture's noise and timestep
    prior       float [N], 1 = its text is a cohort's, and the base's prediction is what is learned
    """

    x: torch.Tensor
    masked: torch.Tensor
    mask: torch.Tensor
    states: torch.Tensor
    pooled: torch.Tensor | None
    weight: torch.Tensor
    noise_seed: list[int]
    prior: torch.Tensor


class Aims(NamedTuple):
    """What a step learns besides the pictures; as the settings of the same names in finetune.config."""

    min_snr_gamma: float = 0.0
    border_weight: float = 1.0
    border_share: float = 0.1
    product_weight: float = 1.0
    keep_base: float = 0.0
    prior: float = 0.0
    beta: float = 0.0  # of preferences: batches hold pairs, all winners first, then their losers

    @property
    def need_base(self) -> bool:
        return bool(self.keep_base or self.prior or self.beta)


class Asked(NamedTuple):
    """What the UNet is asked about a batch: its input [N,9,h,w], timesteps [N], text states [N,T,D], other conditions."""

    seen: torch.Tensor
    t_N: torch.Tensor
    states: torch.Tensor
    more: dict


PLAIN = Aims()  # the mean squared error of every picture


def load(path: Path, device: str, **parts: Any) -> DiffusionPipeline:
    """The pipeline that the folder's model_index.json names, in float32; `unet=None` leaves the UNet out."""
    name = json.loads((path / "model_index.json").read_text())["_class_name"]
    options = {} if "XL" in name else {"safety_checker": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, name).from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, feature_extractor=None, **options, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


class InpaintingModel:
    """Frozen VAE and text encoders, the UNet (or its adapter) that learns, and its loss."""

    def __init__(
        self,
        path: Path,
        device: str,
        threads: int,
        precision: str = "bfloat16",
        lora: Lora | None = None,
        encode_only: bool = False,
    ):
        torch.set_num_threads(threads)
        self.device, self.precision, self.lora = device, getattr(torch, precision), None
        self.base_unet: torch.nn.Module | None = None
        self.pipe = load(path, device, **({"unet": None} if encode_only else {}))
        self.unet, self.vae = self.pipe.unet, self.pipe.vae
        self.sdxl = "text_encoder_2" in self.pipe.components
        self.texts = [(self.pipe.tokenizer, self.pipe.text_encoder)]
        self.texts += [(self.pipe.tokenizer_2, self.pipe.text_encoder_2)] if self.sdxl else []
        for part in self.frozen():
            part.requires_grad_(False).eval()
        self.noising = DDPMScheduler.from_config(self.pipe.scheduler.config)
        if device == "cpu" and self.unet:  # the fused attention's backward takes half of a small UNet's step there
            self.unet.set_attn_processor(AttnProcessor())
        if self.unet and lora is not None and lora.rank:
            self._add_adapter(lora)

    def _add_adapter(self, lora: Lora) -> None:
        self.lora = lora
        self.unet.requires_grad_(False)
        torch.manual_seed(0)  # every worker starts from the same adapter
        self.unet.add_adapter(
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]  # any number will do
                lora_dropout=lora.dropout,
                target_modules=list(lora.targets),
                init_lora_weights="gaussian",
            )
        )

    def keep_base(self) -> None:
        """Keep the UNet as it is now, to be asked beside the one that learns; an adapter's base is there anyway."""
        if not self.lora:
            self.base_unet = copy.deepcopy(self.unet).requires_grad_(False).eval()

    def frozen(self) -> list[torch.nn.Module]:
        """What is not trained: the VAE and the text encoders."""
        return [self.vae, *(encoder for _, encoder in self.texts)]

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def encode(self, examples: dict) -> Encoded:
        """The part of a step that the VAE and the text encoders do; `rows.arrays` makes `examples`."""
        image_NCHW = torch.from_numpy(examples["image"]).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        paint_mask_N1HW = (torch.from_numpy(examples["mask"]).to(self.device)[:, None] < 128).float()
        states, pooled = self.text(examples["caption"])
        x, masked = self._latents(image_NCHW), self._latents(image_NCHW * (paint_mask_N1HW < 0.5))
        mask = F.interpolate(paint_mask_N1HW, size=x.shape[-2:])
        weight = torch.from_numpy(examples["weight"]).to(self.device)
        prior = torch.from_numpy(examples["prior"]).to(self.device)
        return Encoded(x, masked, mask, states, pooled, weight, list(examples["noise_seed"]), prior)

    def losses(self, unet: torch.nn.Module, batch: Encoded, aims: Aims = PLAIN) -> torch.Tensor:
        """float [N]: each picture's mean squared error; by timestep, place and nearness to the base as `aims` says.

        unet    self.unet, or what wraps it for several workers
        source  of the weights by timestep: Hang et al., 2023 (arXiv 2303.09556), equation 5 and, for v, section 3.4
        """
        asked, target = self._asked(batch)
        predicted, near = self._predicted(unet, asked), _near(batch.mask, aims)
        losses = ((predicted - target).square() * _weights(batch.mask, near, aims)).mean((1, 2, 3))
        if aims.need_base:
            from_base = (predicted - self._of_base(asked)).square()
            losses = losses + aims.keep_base * (from_base * (1 - near)).mean((1, 2, 3))
            losses = torch.where(batch.prior > 0, from_base.mean((1, 2, 3)), losses)
        return self._by_timestep(losses, asked.t_N, aims)

    def preferences(self, unet: torch.nn.Module, batch: Encoded, aims: Aims) -> torch.Tensor:
        """float [N/2]: of each pair the logit that its winner is preferred, under weights whose reference is the base.

        The winners are the first half of the batch, and a loser has its winner's noise and timestep. What counts is the
        painted part alone, each picture's own.
        """
        asked, target = self._asked(batch)
        where = _weights(batch.mask, _near(batch.mask, aims), aims._replace(product_weight=0.0))
        own, base = (
            self._by_timestep(((predicted - target).square() * where).mean((1, 2, 3)), asked.t_N, aims)
            for predicted in (self._predicted(unet, asked), self._of_base(asked))
        )
        return preference_logits(own, base, aims.beta)

    def _asked(self, batch: Encoded) -> tuple[Asked, torch.Tensor]:
        """The batch with its noise, and what the UNet should predict of it, [N,4,h,w]."""
        x, steps = batch.x, self.noising.config.num_train_timesteps
        generators = [torch.Generator().manual_seed(s) for s in batch.noise_seed]  # on the CPU: the device is no matter
        t_N = torch.cat([torch.randint(steps, (1,), generator=g) for g in generators]).to(self.device)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(self.device)
        noisy = self.noising.add_noise(x, noise, t_N)  # pyright: ignore[reportArgumentType]  # diffusers means int64
        more = {"added_cond_kwargs": self._added(batch)} if self.sdxl else {}
        asked = Asked(torch.cat([noisy, batch.mask, batch.masked], 1), t_N, batch.states, more)
        return asked, self.noising.get_velocity(x, noise, t_N) if self.velocity else noise  # pyright: ignore[reportArgumentType]

    @property
    def velocity(self) -> bool:
        """Whether the UNet predicts v rather than the noise."""
        return self.noising.config.prediction_type == "v_prediction"

    def _predicted(self, unet: torch.nn.Module, asked: Asked) -> torch.Tensor:
        with self.autocast():
            return unet(asked.seen, asked.t_N, asked.states, return_dict=False, **asked.more)[0].float()

    def _by_timestep(self, losses: torch.Tensor, t_N: torch.Tensor, aims: Aims) -> torch.Tensor:
        if not aims.min_snr_gamma:
            return losses
        snr = compute_snr(self.noising, t_N)
        return losses * snr.clamp(max=aims.min_snr_gamma) / (snr + 1 if self.velocity else snr.clamp(min=1e-8))

    @torch.no_grad()
    def _of_base(self, asked: Asked) -> torch.Tensor:
        """What the base predicts for the same input."""
        base: Any = self.base_unet or self.unet
        if self.lora:
            base.disable_adapters()
        try:
            return self._predicted(base, asked)
        finally:
            if self.lora:
                base.enable_adapters()

    def loss(self, unet: torch.nn.Module, batch: Encoded, aims: Aims = PLAIN) -> torch.Tensor:
        """Mean over the pictures that count of their `losses`, or over the pairs of -log of their `preferences`' sigmoid."""
        if aims.beta:
            losses, weight = -F.logsigmoid(self.preferences(unet, batch, aims)), batch.weight.chunk(2)[0]
        else:
            losses, weight = self.losses(unet, batch, aims), batch.weight
        return (losses * weight).sum() / weight.sum().clamp(min=1)

    @torch.no_grad()
    def text(self, words: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(text states [N,T,D], pooled text [N,D] in SDXL): of two encoders there, each one's last layer but one."""
        some, back = np.unique(np.array(words, dtype=object), return_inverse=True)
        back = torch.from_numpy(back.reshape(-1)).to(self.device)
        states, pooled = [], None
        for tokenizer, encoder in self.texts:
            ids = tokenizer(
                [str(w) for w in some],
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids.to(self.device)
            with self.autocast():
                out = encoder(ids, output_hidden_states=self.sdxl)
            states.append((out.hidden_states[-2] if self.sdxl else out[0]).float())
            pooled = out[0].float() if self.sdxl else None
        states = torch.cat(states, -1)
        if self.sdxl and self.pipe.config.get("force_zeros_for_empty_prompt", True):
            has_text = torch.tensor([bool(w) for w in some], device=self.device).float()
            states = states * has_text[:, None, None]
            pooled = None if pooled is None else pooled * has_text[:, None]
        return states[back], None if pooled is None else pooled[back]

    def _added(self, batch: Encoded) -> dict[str, torch.Tensor | None]:
        """SDXL's other conditions: pooled text, and the sizes that painting gives (whole picture, nothing cropped)."""
        high, wide = (n * self.pipe.vae_scale_factor for n in batch.x.shape[-2:])
        sizes = torch.tensor([high, wide, 0, 0, high, wide], device=self.device)
        return {"text_embeds": batch.pooled, "time_ids": sizes.expand(len(batch.x), -1)}

    def _latents(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        # SDXL's VAE overflows in float16, so that one is encoded in float32.
        narrow = self.precision != torch.float16
        with self.autocast() if narrow else nullcontext():
            return self.vae.encode(image_NCHW).latent_dist.mode().float() * self.vae.config.scaling_factor

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.precision, enabled=self.precision != torch.float32)

    def save(self, folder: Path) -> None:
        """The whole pipeline as fp16 safetensors, an adapter merged and beside it; it is not trained on after this."""
        if self.lora:
            self._save_adapter(folder)
            self.unet.fuse_lora(adapter_names=[ADAPTER])
            self.unet.unload_lora()
        for part in (self.unet, *self.frozen()):
            part.to("cpu").half()
        self.pipe.save_pretrained(folder, safe_serialization=True)
        for config in (folder / "model_index.json", *folder.glob("*/config.json")):
            settings = json.loads(config.read_text())
            # Where this machine had the base: the same weights have one name everywhere.
            settings.pop("_name_or_path", None)
            config.write_text(json.dumps(settings, indent=2) + "\n")

    def _save_adapter(self, folder: Path) -> None:
        """adapter.safetensors, as `generate.adapters` and diffusers' load_lora_weights take it."""
        weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet, adapter_name=ADAPTER))
        self.pipe.save_lora_weights(
            folder,
            unet_lora_layers={k: v.float().cpu().contiguous() for k, v in weights.items()},
            unet_lora_adapter_metadata=self.unet.peft_config[ADAPTER].to_dict(),
            weight_name=ADAPTER_FILE,
            safe_serialization=True,
        )


def preference_logits(own: torch.Tensor, base: torch.Tensor, beta: float) -> torch.Tensor:
    """float [N/2]: beta/2 times how much more the winner's error fell against the base than the loser's did.

    own, base  float [N], mean squared errors of the weights and of their frozen base, all winners first
    source     Wallace et al., 2023 (arXiv 2311.12908), equation 14; beta stands for its beta T w, halved as in their code
    """
    winner, loser = (own - base).chunk(2)
    return -beta / 2 * (winner - loser)


def _near(mask: torch.Tensor, aims: Aims) -> torch.Tensor:
    """float [N,1,h,w]: 1 in the paintable part within `border_share` of the product's edge; of a mask with 1 = repaint."""
    reach = max(1, round(aims.border_share * min(mask.shape[-2:])))
    grown = F.max_pool2d(1 - mask, 2 * reach + 1, stride=1, padding=reach)
    return grown * mask


def _weights(mask: torch.Tensor, near: torch.Tensor, aims: Aims) -> torch.Tensor:
    """float [N,1,h,w] with mean 1: how much each place counts in the loss; `near` as `_near` gives it."""
    weight = 1 + (aims.border_weight - 1) * near
    weight = torch.where(mask > 0, weight, torch.full_like(mask, aims.product_weight))
    return weight / weight.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
