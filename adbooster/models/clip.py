"""CLIP by open_clip: how well a picture fits a text."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import open_clip
import torch
from PIL import Image

from adbooster.contracts.errors import ConfigError


class Clip:
    """An open_clip model from a folder (open_clip_config.json, tokenizer, safetensors)."""

    def __init__(self, path: Path, device: str, threads: int = 1):
        if not (path / "open_clip_config.json").is_file():
            raise ConfigError(f"the CLIP model {path} has no open_clip_config.json; give a folder that open_clip saved")
        torch.set_num_threads(threads)
        name = f"local-dir:{path}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, device=device)
        self.model = cast("open_clip.CLIP | open_clip.CustomTextCLIP", model).float().eval()
        self.preprocess = cast("Callable[[Image.Image], torch.Tensor]", preprocess)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device = device
        self.texts: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def embed_images(self, images_u8: list[np.ndarray], batch: int = 64) -> np.ndarray:
        """uint8 [H,W,3] pictures of any sizes to unit vectors float32 [N,D]."""
        out = []
        for at in range(0, len(images_u8), batch):
            some = [self.preprocess(Image.fromarray(i)) for i in images_u8[at : at + batch]]
            out.append(self.model.encode_image(torch.stack(some).to(self.device), normalize=True).cpu().numpy())
        return np.concatenate(out)

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
