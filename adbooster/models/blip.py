"""BLIP: what a picture shows, in words."""

from pathlib import Path

import numpy as np
import torch
from transformers import BlipForConditionalGeneration, BlipProcessor

from adbooster.models.settings import Captions


class Blip:
    """A BLIP captioner (Li et al., 2022) from a folder in the transformers layout."""

    def __init__(self, path: Path, device: str, threads: int = 1):
        torch.set_num_threads(threads)
        self.processor = BlipProcessor.from_pretrained(path)
        self.model = BlipForConditionalGeneration.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        self.model = self.model.to(device).eval()  # pyright: ignore[reportArgumentType]  # its `to` is untyped

    @torch.inference_mode()
    def captions(self, images_u8: list[np.ndarray], how: Captions | None = None) -> list[str]:
        """uint8 [H,W,3] RGB pictures of any sizes to one line each; greedy, so the same picture has the same words.

        Scaled and normalized on the device, those of one size together.
        """
        how = how or Captions()
        text = {"text": [how.prefix] * len(images_u8)} if how.prefix else {}
        pixels_CHW = [torch.tensor(i).permute(2, 0, 1).to(self.model.device) for i in images_u8]
        inputs = self.processor(
            images=pixels_CHW,
            return_tensors="pt",  # pyright: ignore[reportCallIssue]  # every processor takes it
            **text,
        )
        tokens = self.model.generate(
            **inputs.to(self.model.device),
            max_new_tokens=how.max_new_tokens,
            no_repeat_ngram_size=how.no_repeat_ngram_size,
            repetition_penalty=how.repetition_penalty,
            do_sample=False,
        )
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [t.strip().removeprefix(how.prefix.lower()).strip() for t in texts]
