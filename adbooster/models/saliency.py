"""Salient-object networks by onnxruntime, and the refinement of their masks at full resolution."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.special import expit

from adbooster.contracts.errors import ConfigError
from adbooster.models.preprocessing import Preprocessing, normalize, prepare, read_preprocessing, shrink, sidecar_of
from adbooster.models.settings import Masking
from adbooster.pictures.matting import Refined, product_mask, upsampled

_TOLERANCE = 0.05  # by which half precision or an interpolation may leave 0-1
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class SaliencyNet:
    """A salient-object network from an ONNX file: U2-Net, IS-Net, BiRefNet and their like.

    Keeps the network's probabilities: a per-picture stretch would turn "no product" into a full mask.
    """

    def __init__(self, path: Path, device: str, threads: int = 1, how: Preprocessing | None = None):
        """how: what its input and output are; None: read from the sidecar beside the file, U2-Net's without one

        raises  ConfigError for another file, a device that is not there, and a graph that does not fit `how`
        """
        if path.suffix != ".onnx":
            raise ConfigError(f"the mask model {path} is not an .onnx file")
        self.name, self.how = path.name, how or read_preprocessing(sidecar_of(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        if self.session.get_providers()[0] != provider:
            raise ConfigError(f"the mask model was asked to run on {device}, which this onnxruntime does not offer")
        self.input = self.session.get_inputs()[0]
        shape = self.input.shape
        if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3) or self.input.type not in _TYPES:
            raise ConfigError(
                f"the mask model {path.name} takes {self.input.type} {shape} and should take RGB as floats, [N,3,H,W]"
            )
        self.size_px, self.output = self._size_px(), self._output()

    def probabilities(self, image_u8: np.ndarray) -> np.ndarray:
        """uint8 [H,W,3] RGB to float32 [H,W], 0-1.

        raises  ConfigError if the output holds no probabilities
        """
        return self.probabilities_of([image_u8])[0]

    def probabilities_of(self, images_u8: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As `probabilities` for each; in one pass if the graph takes any number, whose last bits may then differ."""
        maps = self.maps(np.stack([shrink(image, self.how, self.size_px) for image in images_u8]))
        return [upsampled(m, image.shape[:2]) for m, image in zip(maps, images_u8, strict=True)]

    def maps(self, x_u8: np.ndarray) -> np.ndarray:
        """Pictures that `preprocessing.shrink` made, uint8 [B,3,h,w], to probabilities at the network's size, float32 [B,h,w].

        raises  as `probabilities`
        """
        x_BCHW = normalize(x_u8, self.how)
        any_number = not isinstance(self.input.shape[0], int)
        passes = [x_BCHW] if any_number else [x_BCHW[i : i + 1] for i in range(len(x_BCHW))]
        maps = np.concatenate([self.raw(x) for x in passes])
        maps = expit(maps) if self.how.activation == "sigmoid" else maps
        low, high = float(maps.min()), float(maps.max())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # NaN too
            others = [o.name for o in self.session.get_outputs()]
            raise ConfigError(
                f"the output {self.output} of the mask model {self.name} goes from {low:.3g} to {high:.3g} and should "
                f"hold probabilities; of logits set mask_network.activation to sigmoid (or `activation` in the file "
                f"beside the model), else mask_network.output to another of {', '.join(others)}"
            )
        return maps

    def raw(self, x_BCHW: np.ndarray) -> np.ndarray:
        """The output as the network gives it, float32 [B,h,w].

        raises  ConfigError if that is not one map a picture
        """
        given = {self.input.name: x_BCHW.astype(_TYPES[self.input.type], copy=False)}
        out = np.asarray(self.session.run([self.output], given)[0], np.float32)
        if out.ndim not in (3, 4) or out.shape[0] != len(x_BCHW) or (out.ndim == 4 and out.shape[1] != 1):
            raise ConfigError(
                f"the output {self.output} of the mask model {self.name} is {list(out.shape)} and should be one map, "
                f"[N,1,H,W]; set mask_network.output"
            )
        return out.reshape(len(out), *out.shape[-2:])

    def mask(self, image_u8: np.ndarray, how: Masking | None = None) -> Refined:
        """uint8 [H,W,3] RGB to a mask, uint8 [H,W], 255 = product, its edge refined in a band."""
        how = how or Masking()
        return product_mask(image_u8, self.probabilities(image_u8), how.refine_px, how.solve_px, how.holes)

    def _size_px(self) -> tuple[int, int]:
        fixed, given = self.input.shape[2:], self.how.size_px
        if given is None:
            if not all(isinstance(n, int) for n in fixed):
                raise ConfigError(
                    f"the mask model {self.name} takes pictures of any size; set mask_network.input_px, or `size` in a "
                    f"file {self.name.removesuffix('.onnx')}.json beside it"
                )
            return fixed[0], fixed[1]
        if any(isinstance(n, int) and n != wanted for n, wanted in zip(fixed, given, strict=True)):
            raise ConfigError(
                f"the mask model {self.name} takes {fixed[0]} x {fixed[1]} px (height x width), and {given[0]} x "
                f"{given[1]} is set; correct mask_network.input_px, or `size` in the file beside it"
            )
        return given

    def _output(self) -> str:
        names, wanted = [o.name for o in self.session.get_outputs()], self.how.output
        if str(wanted) in names:
            return str(wanted)
        try:
            return names[int(wanted)]
        except (ValueError, IndexError):
            raise ConfigError(
                f"the mask model {self.name} has no output {wanted!r}; its outputs are {', '.join(names)}"
            ) from None


def probe(net: SaliencyNet) -> None:
    """Run it once, on a made picture.

    raises  ConfigError if the output is no map of probabilities, before or after the activation
    """
    rows, columns = np.indices((256, 256))
    made_u8 = np.full((256, 256, 3), 230, np.uint8)
    made_u8[np.hypot(rows - 128, columns - 128) < 70] = (150, 60, 40)
    net.probabilities(made_u8)
    raw = net.raw(prepare(made_u8, net.how, net.size_px)[None]) if net.how.activation == "sigmoid" else None
    if raw is not None and raw.min() >= 0 and raw.max() <= 1:
        raise ConfigError(
            f"the output {net.output} of the mask model {net.name} holds probabilities ({raw.min():.3g} to "
            f"{raw.max():.3g}) before the sigmoid that is set; set mask_network.activation to none"
        )
