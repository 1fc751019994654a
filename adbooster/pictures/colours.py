"""Whatever a picture file holds to 8-bit sRGB and alpha; and colours as an eye tells them apart."""

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


_LINEAR = np.where(
    np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)  # D65


def linear(picture_u8: np.ndarray) -> np.ndarray:
    """sRGB uint8 to amounts of light, float32 0-1."""
    return _LINEAR[picture_u8]


def lab(picture_u8: np.ndarray) -> np.ndarray:
    """sRGB uint8 [...,3] to CIELAB (D65), float32 [...,3]."""
    xyz = linear(picture_u8) @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference of colours in CIELAB [...,3] as an eye sees it; about 1 is just visible.

    Source: Sharma, Wu & Dalal, The CIEDE2000 Color-Difference Formula, 2005.
    """
    (la, aa, ba), (lb, ab, bb) = (np.moveaxis(np.asarray(c, np.float64), -1, 0) for c in (a, b))
    chroma = (np.hypot(aa, ba) + np.hypot(ab, bb)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    ca, cb = np.hypot(aa * stretch, ba), np.hypot(ab * stretch, bb)
    ha, hb = (np.degrees(np.arctan2(y, x * stretch)) % 360 for x, y in ((aa, ba), (ab, bb)))
    both = (ca * cb) > 0
    turn = np.where(both, (hb - ha + 180) % 360 - 180, 0.0)
    turn = np.where(both & (hb - ha == 180), 180.0, turn)
    hue_sum = ha + hb
    hue = np.where(np.abs(ha - hb) <= 180, hue_sum / 2, (hue_sum + np.where(hue_sum < 360, 360, -360)) / 2)
    hue = np.where(both, hue, hue_sum)
    light, mean = (la + lb) / 2, (ca + cb) / 2
    t = 1 - 0.17 * _cos(hue - 30) + 0.24 * _cos(2 * hue) + 0.32 * _cos(3 * hue + 6) - 0.20 * _cos(4 * hue - 63)
    dl = (lb - la) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (cb - ca) / (1 + 0.045 * mean)
    dh = 2 * np.sqrt(ca * cb) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * mean * t)
    rotation = 2 * np.sqrt(mean**7 / (mean**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 - rotation * dc * dh, 0))


def _cos(degrees: np.ndarray) -> np.ndarray:
    return np.cos(np.radians(degrees))
