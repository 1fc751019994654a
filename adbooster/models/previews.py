"""What a candidate will look like, seen halfway: the clean picture that a step's prediction implies, decoded cheaply.

Shapes: N pictures, C channels, H x W pixels, h x w latents.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch.nn import functional as F

from adbooster.contracts.errors import ConfigError
from adbooster.models.families import StableDiffusion

FITTED_PX, FITTED_ON = 128, 16


class Previews:
    """Decodes latents into pictures good enough to compare candidates with.

    kind    as `Halving.preview`: `vae`; `half`, the VAE on latents of half the side; `linear`, one pixel a latent by a
            linear map, fitted to the VAE when this is made
    path    folder of a small decoder (diffusers' AutoencoderTiny, as TAESD is) that is taken instead
    raises  ConfigError if that decoder is made for other latents
    """

    def __init__(self, family: StableDiffusion, kind: str = "vae", path: Path | None = None):
        self.family, self.kind, self.tiny = family, kind, None
        channels = family.vae.config.latent_channels
        self.map_CK = _fitted(family) if kind == "linear" and not path else None
        if path:
            self.tiny = (
                cast("Any", AutoencoderTiny.from_pretrained(path, use_safetensors=True)).to(family.device).eval()
            )
            if (made_for := self.tiny.config.latent_channels) != channels:
                raise ConfigError(f"the preview decoder {path} takes {made_for} channels; the weights have {channels}")

    def __call__(self, x_NChw: torch.Tensor, size: tuple[int, int]) -> list[np.ndarray]:
        """uint8 [H,W,3] of `size` for clean latents in the network's scale."""
        if self.tiny is not None:
            pixels = self.tiny.decode(x_NChw.to(self.tiny.dtype), return_dict=False)[0]
        elif self.map_CK is not None:
            pixels = torch.einsum("nchw,ck->nkhw", F.pad(x_NChw, (0, 0, 0, 0, 0, 1), value=1.0), self.map_CK)
        else:
            half = self.kind == "half"
            pixels = self.family.decode(F.interpolate(x_NChw, scale_factor=0.5, mode="area") if half else x_NChw)
        whole = [n * self.family.factor for n in x_NChw.shape[-2:]]
        pixels = F.interpolate(pixels.float(), size=whole, mode="bilinear")[..., : size[0], : size[1]]
        return list(((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _fitted(family: StableDiffusion) -> torch.Tensor:
    """[C+1,3]: least squares from latents and a constant to the mean colours of their patches, on smooth noise."""
    g = torch.Generator().manual_seed(0)
    fields = [torch.rand(1, 3, 2 + i % 8, 2 + i % 8, generator=g) for i in range(FITTED_ON)]
    pixels = torch.cat([F.interpolate(f, size=(FITTED_PX, FITTED_PX), mode="bilinear") for f in fields]) * 2 - 1
    latents = family.encode(pixels.to(family.device)).cpu()
    colours = F.interpolate(pixels, size=latents.shape[-2:], mode="area")
    given = torch.cat([latents, torch.ones_like(latents[:, :1])], 1)
    rows, wanted = (t.permute(0, 2, 3, 1).flatten(0, 2).double() for t in (given, colours))
    return torch.linalg.lstsq(rows, wanted).solution.float().to(family.device)


def clean(scheduler: Any, t: torch.Tensor, x: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The clean latents that a prediction at timestep t implies; before the scheduler's step.

    x       latents as the network saw them (scaled by the scheduler): a * clean + s * noise with a^2 + s^2 = 1, in
            flow matching (1 - s) * clean + s * noise
    source  Salimans & Ho, 2022 (arXiv 2202.00512), section 4 and appendix D; Lipman et al., 2023, for flow matching
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "sample":
        return predicted
    at = scheduler.step_index if getattr(scheduler, "step_index", None) is not None else None
    if at is None and hasattr(scheduler, "sigmas"):
        at = scheduler.index_for_timestep(t)
    if kind == "flow_prediction":
        return x - scheduler.sigmas[at] * predicted
    if at is not None and hasattr(scheduler, "sigmas"):
        a = 1 / (scheduler.sigmas[at].to(x) ** 2 + 1).sqrt()
    else:
        a = scheduler.alphas_cumprod[int(t)].to(x).sqrt()
    s = (1 - a**2).sqrt()
    return a * x - s * predicted if kind == "v_prediction" else (x - s * predicted) / a
