"""How pictures become the input of an open_clip model: read without torch, so that stages without a network can do it."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from adbooster.contracts.errors import ConfigError

CONFIG = "open_clip_config.json"
_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipInput(NamedTuple):
    """What `preprocess_cfg` and `vision_cfg` of open_clip_config.json say.

    height_px, width_px  of the input
    resize_mode          shortest: scaled to cover it, its middle kept; squash: scaled to it; longest: scaled to fit, padded
    """

    height_px: int
    width_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: Literal["shortest", "squash", "longest"]
    interpolation: Literal["bicubic", "bilinear"]
    fill_color: int

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which a picture of this size is scaled, before its middle is kept or it is padded."""
        if self.resize_mode == "squash":
            return self.height_px, self.width_px
        ratios = height / self.height_px, width / self.width_px
        if self.resize_mode == "longest":
            return round(height / max(ratios)), round(width / max(ratios))
        if self.height_px != self.width_px:
            return round(height / min(ratios)), round(width / min(ratios))
        short = min(height, width)
        return int(self.height_px * height / short), int(self.width_px * width / short)


def read_clip_input(path: Path) -> ClipInput:
    """Of a folder that open_clip saved.

    raises  ConfigError for a folder without open_clip_config.json
    """
    if not (path / CONFIG).is_file():
        raise ConfigError(f"the CLIP model {path} has no {CONFIG}; give a folder that open_clip saved")
    config = json.loads((path / CONFIG).read_text())
    size, how = config["model_cfg"]["vision_cfg"]["image_size"], config.get("preprocess_cfg", {})
    height_px, width_px = (size, size) if isinstance(size, int) else size
    return ClipInput(
        height_px,
        width_px,
        tuple(how.get("mean") or _OPENAI_MEAN),
        tuple(how.get("std") or _OPENAI_STD),
        how.get("resize_mode") or "shortest",
        how.get("interpolation") or "bicubic",
        how.get("fill_color", 0),
    )


def clip_pixels(image_u8: np.ndarray, how: ClipInput) -> np.ndarray:
    """uint8 [H,W,3] to uint8 [h,w,3] of the model's size, the pixels that open_clip's own transform takes."""
    height, width = how.scaled(*image_u8.shape[:2])
    resample = Image.Resampling.BILINEAR if how.interpolation == "bilinear" else Image.Resampling.BICUBIC
    scaled = np.asarray(Image.fromarray(image_u8).resize((width, height), resample))
    top, left = (round((have - want) / 2) for have, want in ((height, how.height_px), (width, how.width_px)))
    if top >= 0 and left >= 0:
        return scaled[top : top + how.height_px, left : left + how.width_px]
    above, before = (how.height_px - height) // 2, (how.width_px - width) // 2
    out = np.full((how.height_px, how.width_px, 3), how.fill_color, np.uint8)
    out[above : above + height, before : before + width] = scaled
    return out
