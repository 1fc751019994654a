"""U2-Net by onnxruntime, and the refinement of its mask at full resolution."""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from adbooster.contracts.errors import ConfigError
from adbooster.models.settings import Masking
from adbooster.pictures.matting import Refined, refine, refine_large

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class U2Net:
    """A salient-object model of the U2-Net family (Qin et al., 2020) from an ONNX file.

    Keeps the network's probabilities: a per-image stretch would turn "no product" into a full mask.
    """

    def __init__(self, path: Path, device: str, threads: int = 1):
        if path.suffix != ".onnx":
            raise ConfigError(f"the mask model {path} is not an .onnx file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        if self.session.get_providers()[0] != provider:
            raise ConfigError(f"the mask model was asked to run on {device}, which this onnxruntime does not offer")
        self.input = self.session.get_inputs()[0]
        self.side_px = self.input.shape[2]

    def probabilities(self, image_u8: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] RGB to float32 [H,W], 0-1."""
        small = Image.fromarray(image_u8).resize((self.side_px, self.side_px), Image.Resampling.BILINEAR)
        x_HWC = np.asarray(small, np.float32)
        x_HWC = (x_HWC / max(float(x_HWC.max()), 1e-6) - MEAN) / STD
        fused = np.asarray(self.session.run(None, {self.input.name: x_HWC.transpose(2, 0, 1)[None]})[0])[0, 0]
        height, width = image_u8.shape[:2]
        return np.asarray(Image.fromarray(fused).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)

    def mask(self, image_u8: np.ndarray, how: Masking | None = None) -> Refined:
        """uint8 [H,W,3] RGB to a mask, uint8 [H,W], 255 = product, its edge refined in a band.

        The band's half-width defaults to 1 % of the longer side, which is what the network's 320 px leave unclear.
        """
        how = how or Masking()
        probability = self.probabilities(image_u8)
        band_px = how.refine_px or max(2, round(max(image_u8.shape[:2]) / 100))
        if probability.size > how.solve_px:
            return refine_large(image_u8, probability, band_px, how.solve_px, how.holes)
        return refine(image_u8, probability, band_px, how.holes)
