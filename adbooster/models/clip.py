"""CLIP by open_clip: how well a picture fits a text."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
from PIL import Image

from adbooster.models.clip_input import read_clip_input


class Clip:
    """An open_clip model from a folder (open_clip_config.json, tokenizer, safetensors); unit vectors are float32 [N,D]."""

    def __init__(self, path: Path, device: str, threads: int = 1, dtype: torch.dtype = torch.float32):
        """dtype: of `embed_pixels` on a GPU; elsewhere, and of all else, float32"""
        self.input = read_clip_input(path)
        torch.set_num_threads(threads)
        name = f"local-dir:{path}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
        self.model = cast("open_clip.CLIP | open_clip.CustomTextCLIP", model).float().eval()
        self.preprocess = cast("Callable[[Image.Image], torch.Tensor]", preprocess)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device, self.dtype = device, dtype
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.input.mean, self.input.std))
        self.texts: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def embed_images(self, images_u8: list[np.ndarray], batch: int = 64) -> np.ndarray:
        """uint8 [H,W,3] pictures of any sizes to unit vectors, through open_clip's own transform, one after another."""
        out = []
        for at in range(0, len(images_u8), batch):
            some = [self.preprocess(Image.fromarray(i)) for i in images_u8[at : at + batch]]
            out.append(self.model.encode_image(torch.stack(some).to(self.device), normalize=True).cpu().numpy())
        return np.concatenate(out)

    @torch.inference_mode()
    def embed_pixels(self, pixels_u8: torch.Tensor | np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 [N,H,W,3] pictures of one size to unit vectors, scaled and normalised on the device.

        Pictures of the model's own size (clip_input.clip_pixels) give what `embed_images` gives. Others are scaled by
        PyTorch rather than Pillow: pixels differ by some levels at edges, cosines with a text by less than 0.002.
        """
        pixels = torch.as_tensor(np.array(pixels_u8) if isinstance(pixels_u8, np.ndarray) else pixels_u8)
        half = self.device == "cuda" and self.dtype != torch.float32
        out = []
        for some in pixels.split(batch):
            x_NCHW = self._scaled(some.to(self.device).permute(0, 3, 1, 2).float())
            x_NCHW = (x_NCHW / 255 - self.mean) / self.std
            with torch.autocast(self.device, self.dtype, enabled=half):
                vectors = self.model.encode_image(x_NCHW, normalize=True)
            out.append(torch.nn.functional.normalize(vectors.float(), dim=-1) if half else vectors)
        return torch.cat(out).cpu().numpy()

    def _scaled(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Levels (0-255) at the model's size, as clip_input.clip_pixels makes them."""
        how = self.input
        size = how.scaled(*x_NCHW.shape[2:])
        if size != tuple(x_NCHW.shape[2:]):
            x_NCHW = torch.nn.functional.interpolate(x_NCHW, size, mode=how.interpolation, antialias=True)
            x_NCHW = x_NCHW.clamp(0, 255).round()
        missing = [max(0, want - have) for want, have in ((how.height_px, size[0]), (how.width_px, size[1]))]
        if any(missing):
            above, before = (n // 2 for n in missing)
            pads = (before, missing[1] - before, above, missing[0] - above)
            return torch.nn.functional.pad(x_NCHW, pads, value=how.fill_color)
        top, left = round((size[0] - how.height_px) / 2), round((size[1] - how.width_px) / 2)
        return x_NCHW[..., top : top + how.height_px, left : left + how.width_px]

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Texts to unit vectors float32 [N,D]; each distinct text is embedded once in this process."""
        new = [t for t in dict.fromkeys(texts) if t not in self.texts]
        if new:
            vectors = self.model.encode_text(self.tokenizer(new).to(self.device), normalize=True).cpu().numpy()
            self.texts.update(zip(new, vectors, strict=True))
        return np.stack([self.texts[t] for t in texts])

    @torch.inference_mode()
    def probability(self, image_vector: np.ndarray, texts: tuple[str, ...], others: tuple[str, ...]) -> float:
        """Zero-shot probability (0-1) that a picture is one of `texts` rather than of `others`; image_vector [D]."""
        cosines = self.embed_texts([*texts, *others]) @ image_vector
        scale = float(self.model.logit_scale.exp())
        return float(torch.softmax(torch.from_numpy(cosines * scale), 0)[: len(texts)].sum())
