"""Stable Diffusion's safety checker: whether a finished picture shows unsafe content."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


class Safety:
    """A StableDiffusionSafetyChecker from a folder (safetensors and preprocessor_config.json)."""

    def __init__(self, path: Path, device: str):
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        self.model = StableDiffusionSafetyChecker.from_pretrained(path, use_safetensors=True)
        self.model.to(device).eval()  # pyright: ignore[reportArgumentType]  # transformers' `to` is untyped
        self.processor, self.device = CLIPImageProcessor.from_pretrained(path), device

    @torch.inference_mode()
    def unsafe(self, picture_u8: np.ndarray) -> bool:
        pixels = self.processor(Image.fromarray(picture_u8), return_tensors="pt").pixel_values.to(self.device)
        return bool(self.model(images=picture_u8[None].copy(), clip_input=pixels)[1][0])
