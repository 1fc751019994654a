"""How a salient-object network is fed and read: from a sidecar beside its .onnx file, from settings, or as U2-Net is."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.models.settings import MaskNetwork

HUB_FILE = "preprocessor_config.json"
SIDE_PX = 320
_MAX_BYTES = 1 << 20
_Channels = tuple[float, float, float]
_Deviations = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class Preprocessing(BaseModel):
    """A picture to a network's input, and a network's output to probabilities; the defaults are U2-Net's.

    size_px     height and width of the input; None: what the graph fixes
    scale       what pixel values (0-255) are divided by; `maximum`: the picture's own largest
    mean, std   of the scaled values, by channel (RGB)
    resample    Pillow's number of the filter that scales the picture down: 2 is bilinear, 3 bicubic
    output      index or name of the output that is the map of the product
    activation  what makes probabilities of the output; none: it holds them
    """

    model_config = ConfigDict(frozen=True)
    size_px: tuple[int, int] | None = None
    scale: Literal["maximum"] | PositiveFloat = "maximum"
    mean: _Channels = (0.485, 0.456, 0.406)
    std: _Deviations = (0.229, 0.224, 0.225)
    resample: int = int(Image.Resampling.BILINEAR)
    output: int | str = 0
    activation: Literal["none", "sigmoid"] = "none"


U2NET = Preprocessing()


class _Size(BaseModel):
    model_config = ConfigDict(extra="forbid")
    height: int = Field(ge=16, le=8192)
    width: int = Field(ge=16, le=8192)


class _Sidecar(BaseModel):
    """The keys of Hugging Face's image processors, and three more: `scale`, `output`, `activation`."""

    size: _Size | None = None
    image_mean: _Channels | None = None
    image_std: _Deviations | None = None
    rescale_factor: PositiveFloat = 1 / 255
    resample: int = Field(default=int(Image.Resampling.BILINEAR), ge=0, le=5)
    do_normalize: bool = True
    do_rescale: bool = True
    do_resize: Literal[True] = True
    do_pad: Literal[False] | None = None
    do_center_crop: Literal[False] | None = None
    scale: Literal["maximum"] | PositiveFloat | None = None
    output: int | str = Field(default=0, union_mode="left_to_right")
    activation: Literal["none", "sigmoid"] = "none"


_IGNORED = ("crop_size", "do_convert_rgb", "feature_extractor_type", "image_processor_type", "processor_class")


def sidecar_names(path: str) -> list[str]:
    """Where the sidecar of the .onnx file at `path` may lie, the first that exists is it: `<name>.json`, then Hugging
    Face's preprocessor_config.json, also in the folder above one named `onnx`."""
    folder, _, name = path.rpartition("/")
    names = [f"{folder}/{name.removesuffix('.onnx')}.json", f"{folder}/{HUB_FILE}"]
    above, _, last = folder.rpartition("/")
    return [*names, f"{above}/{HUB_FILE}"] if last == "onnx" else names


def sidecar_of(path: Path) -> Path | None:
    """The sidecar of a local .onnx file; None: it has none."""
    return next((p for p in map(Path, sidecar_names(path.absolute().as_posix())) if p.is_file()), None)


def read_preprocessing(sidecar: Path | None, network: MaskNetwork | None = None) -> Preprocessing:
    """The sidecar's values, or U2-Net's without one, and over them the settings that are given.

    raises  ConfigError for a sidecar that cannot be read, misses a value, or asks for what is not done here
    """
    found = _read(sidecar) if sidecar else U2NET
    given = (network or MaskNetwork()).model_dump(exclude_none=True)
    if side_px := given.pop("input_px", None):
        given["size_px"] = (side_px, side_px)
    return found.model_copy(update=given)


def revision(content_hash: str, how: Preprocessing) -> str:
    """16 hex digits of a mask model: its file's content hash alone where it is fed as U2-Net is, else of both."""
    if how in (U2NET, U2NET.model_copy(update={"size_px": (SIDE_PX, SIDE_PX)})):
        return content_hash
    return digest("saliency", content_hash, json.dumps(how.model_dump(mode="json"), sort_keys=True))[:16]


def shrink(image_u8: np.ndarray, how: Preprocessing, size_px: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W,3] RGB to uint8 [3,h,w]; size_px: (h, w)"""
    height, width = size_px
    small = Image.fromarray(image_u8).resize((width, height), Image.Resampling(how.resample))
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def normalize(x_u8: np.ndarray, how: Preprocessing) -> np.ndarray:
    """Shrunk pictures, uint8 [B,3,h,w], to float32, scaled and normalized; within a millisecond each at 320 px."""
    x_BCHW = x_u8.astype(np.float32)
    if how.scale == "maximum":
        largest = x_u8.reshape(len(x_u8), -1).max(1).astype(np.float32)
        x_BCHW /= np.maximum(largest, np.float32(1e-6))[:, None, None, None]
    else:
        x_BCHW /= np.float32(how.scale)
    x_BCHW -= np.array(how.mean, np.float32)[:, None, None]
    x_BCHW /= np.array(how.std, np.float32)[:, None, None]
    return x_BCHW


def prepare(image_u8: np.ndarray, how: Preprocessing, size_px: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W,3] RGB to float32 [3,h,w], shrunk and normalized."""
    return normalize(shrink(image_u8, how, size_px)[None], how)[0]


def _read(path: Path) -> Preprocessing:
    said = f"the sidecar {path} of the mask model"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{said} has more than {_MAX_BYTES} bytes")
        values = json.loads(path.read_bytes())
        known = {k: v for k, v in values.items() if k in _Sidecar.model_fields}
        sidecar = _Sidecar.model_validate(known)
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(f"{said}: {first['loc'][0]}: {first['msg']}, and it is {str(first['input'])[:80]}") from e
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise ConfigError(f"{said} cannot be read as a JSON object: {str(e)[:200]}") from e
    unknown = [k for k in values if k not in known and k not in _IGNORED]
    if unknown and path.name != HUB_FILE:
        raise ConfigError(f"{said} has the unknown key {unknown[0]!r}; known are {', '.join(_Sidecar.model_fields)}")
    mean, std = sidecar.image_mean, sidecar.image_std
    if not sidecar.do_normalize:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if mean is None or std is None:
        raise ConfigError(f"{said} has no image_mean or no image_std; give three numbers each, or do_normalize: false")
    return Preprocessing(
        size_px=sidecar.size and (sidecar.size.height, sidecar.size.width),
        scale=sidecar.scale or (round(1 / sidecar.rescale_factor, 6) if sidecar.do_rescale else 1.0),
        mean=mean,
        std=std,
        resample=sidecar.resample,
        output=sidecar.output,
        activation=sidecar.activation,
    )
