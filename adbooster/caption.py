"""BLIP: what a picture shows, in words."""

from pathlib import Path

import numpy as np
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor


class Blip:
    """A BLIP captioner (Li et al., 2022) from a folder in the transformers layout."""

    def __init__(self, path: Path, device: str, threads: int = 1):
        torch.set_num_threads(threads)
        self.processor = BlipProcessor.from_pretrained(path)
        self.model = BlipForConditionalGeneration.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        self.model = self.model.to(device).eval()

    @torch.inference_mode()
    def captions(self, images_u8: list[np.ndarray], max_new_tokens: int = 24) -> list[str]:
        """uint8 [H,W,3] RGB pictures of any sizes to one line each; greedy, so the same picture has the same words."""
        inputs = self.processor(images=images_u8, return_tensors="pt").to(self.model.device)
        tokens = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return [t.strip() for t in self.processor.batch_decode(tokens, skip_special_tokens=True)]
