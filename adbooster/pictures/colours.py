"""Whatever a picture file holds to 8-bit sRGB and alpha."""

import io

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.createProfile("sRGB")


_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def srgb(picture: Image.Image) -> Image.Image:
    """An RGB picture, or RGBA if any transparency is said; an embedded profile is applied, depth scaled, not clipped."""
    if picture.mode in _DEEP:
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(picture, ImageCms.createProfile("LAB"), _SRGB, outputMode="RGB")  # type: ignore
    alpha = None
    if picture.has_transparency_data:
        # Palettes and lone transparent colours have no channel of their own yet.
        if picture.mode not in ("RGBA", "LA"):
            picture = picture.convert({"La": "LA", "L": "LA", "1": "LA"}.get(picture.mode, "RGBA"))
        alpha = picture.getchannel("A")
        picture = picture.convert("L" if picture.mode == "LA" else "RGB")
    elif picture.mode in ("P", "RGBX", "HSV", "YCbCr", "1"):
        picture = picture.convert("RGB")
    out = _profiled(picture)
    if alpha is not None:
        out.putalpha(alpha)
    return out


def _profiled(picture: Image.Image) -> Image.Image:
    """By its ICC profile to sRGB; a profile that is broken, of another colour space or sRGB itself changes nothing."""
    profile = picture.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(picture, source, _SRGB, outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values to uint8 by the range they are in: 0-1 (float), 0-255, 0-65535, or their own."""
    if values.dtype == np.uint16:
        low, scale = 0.0, 1 / 257
    else:
        whole = np.issubdtype(values.dtype, np.integer)
        if not whole:
            values = np.nan_to_num(values)
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 65535:
            scale = 255 / max(high - low, 1e-12)
        else:
            scale = 255.0 if high <= 1 and not whole else 1.0 if high <= 255 else 1 / 257
            low = 0.0
    out = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 512):  # the whole in float64 takes gigabytes
        rows = values[top : top + 512].astype(np.float64) - low
        out[top : top + 512] = np.round(rows * scale).clip(0, 255)
    return out
