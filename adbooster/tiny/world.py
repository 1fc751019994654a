"""The tiny world: pictures of products in scenes, with the true mask and the true caption of each.

Product and prop renders (Fluent Emoji 3D, see NOTICE) are composed over a gradient sky and ground; all but the
product is blurred as by a lens with a shallow depth of field. Everything follows from one integer seed.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter

from adbooster.tiny import textures

_HERE = resources.files("adbooster.tiny")
RENDER_PX = 256
FAR_BLUR, NEAR_BLUR = 0.011, 0.0065  # shares of the side: what stands far is the more out of focus
HAZE = 0.2
AIR_SIZE, FAR_SIZE, FAR_PROPS = (0.1, 0.17), (0.28, 0.42), (3, 5)
NEAR_PROPS, NEAR_DEPTH, NEAR_GROWTH = (4, 7), 0.3, 0.3
WHITE = "on a white background"


@dataclass(frozen=True)
class Product:
    """One render; `name` goes into captions, `queries` are what shoppers type."""

    key: str
    name: str
    queries: tuple[str, ...]
    category: str
    held_out: bool


@dataclass(frozen=True)
class Scene:
    """One scene; `name` goes into captions, `contexts` and `words` describe it in other words."""

    key: str
    family: str
    name: str
    contexts: tuple[str, ...]
    words: tuple[str, ...]
    colours: tuple[str, str, str, str]
    textures: tuple[str, str]
    horizon: tuple[str, ...]
    ground: tuple[str, ...]
    air: tuple[str, ...]


def _load(name: str) -> dict:
    return yaml.safe_load((_HERE / name).read_text())


def _frozen(entry: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}


SCENES = {k: Scene(key=k, **_frozen(v)) for k, v in _load("scenes.yaml").items()}
PRODUCTS = {
    k: Product(key=k, held_out=v.pop("held_out", False), **_frozen(v)) for k, v in _load("products.yaml").items()
}
SEEN = [k for k, p in PRODUCTS.items() if not p.held_out]
HELD_OUT = [k for k, p in PRODUCTS.items() if p.held_out]
FAMILIES = ("seasons", "events", "sports")


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def caption(product: str, scene: str | None) -> str:
    """The canonical caption, as the captioner is taught it; no scene means a packshot."""
    return f"{article(PRODUCTS[product].name)} {SCENES[scene].name if scene else WHITE}"


@lru_cache(maxsize=4096)
def render(kind: str, key: str, side_px: int) -> Image.Image:
    """One render as RGBA, its transparent margin cropped away, longer side scaled to `side_px` (never up)."""
    with (_HERE / "renders" / kind / f"{key}.webp").open("rb") as f:
        full = Image.open(f).convert("RGBA")
    full = full.crop(full.getchannel("A").point([255 * (a > 8) for a in range(256)]).getbbox())
    scale = min(1.0, side_px / max(full.size))
    return full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))), Image.LANCZOS)


def compose(
    scene: str, product: str, side_px: int, seed: int, hue: bool = False, turn: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One lifestyle picture.

    returns  (image uint8 [S,S,3], mask uint8 [S,S], 255 = product)
    `hue` turns the product's colours by chance, so that training sees more products than there are renders; `turn` by
    so many of 256 parts of the circle.
    """
    rng = np.random.default_rng(seed)
    canvas = backdrop(SCENES[scene], side_px, rng)
    item = render("products", product, min(RENDER_PX, round(side_px * rng.uniform(0.38, 0.6))))
    if hue or turn:
        item = _turn_hue(item, turn or int(rng.integers(256)))
    item = _lit(item, SCENES[scene].colours[1], rng.uniform(0, 0.12))
    x = round((side_px - item.width) * rng.uniform(0.15, 0.85))
    y = round(side_px * rng.uniform(0.76, 0.94)) - item.height
    _shadow(canvas, x, y + item.height, item.width)
    return _stand(canvas, item, x, max(0, y))


def packshot(
    product: str, side_px: int, seed: int | None = None, hue: bool = False, turn: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One product on white: centred and at the render's own size, or varied by `seed`; returns like `compose`."""
    rng = np.random.default_rng(seed)
    share = 0.5 if seed is None else rng.uniform(0.4, 0.8)
    item = render("products", product, min(RENDER_PX, round(side_px * share)))
    if hue or turn:
        item = _turn_hue(item, turn or int(rng.integers(256)))
    canvas = Image.new("RGB", (side_px, side_px), "white")
    dx, dy = (0.5, 0.5) if seed is None else rng.uniform(0.3, 0.7, 2)
    return _stand(canvas, item, round((side_px - item.width) * dx), round((side_px - item.height) * dy))


def backdrop(scene: Scene, side_px: int, rng: np.random.Generator) -> Image.Image:
    """The scene without a product: textured ground and sky, and props that are the more out of focus the farther."""
    horizon = rng.uniform(0.55, 0.68)
    sky_px = round(side_px * horizon)
    sky_top, sky_low, far, near = (_jitter(c, rng) for c in scene.colours)
    ground, sky = scene.textures
    rows = [
        textures.sky(sky, sky_top, sky_low, (side_px, sky_px), rng),
        textures.ground(ground, far, near, (side_px, side_px - sky_px)),
    ]
    canvas = Image.fromarray(np.concatenate(rows).clip(0, 255).astype(np.uint8))
    canvas.paste(canvas.filter(ImageFilter.GaussianBlur(FAR_BLUR / 2 * side_px)), mask=_depth(side_px, sky_px))
    for x in _spread(rng, len(scene.air) + int(rng.integers(2, 4))):
        at = (x, rng.uniform(0.2, 0.36))
        _put(canvas, _pick(scene.air, rng), at, rng.uniform(*AIR_SIZE), FAR_BLUR, (HAZE, sky_low))
    for x in _spread(rng, int(rng.integers(*FAR_PROPS))):
        at = (x, horizon + 0.03)
        _put(canvas, _pick(scene.horizon, rng), at, rng.uniform(*FAR_SIZE), FAR_BLUR, (HAZE, sky_low))
    near_props = [(rng.uniform(0.05, NEAR_DEPTH), x) for x in _spread(rng, int(rng.integers(*NEAR_PROPS)))]
    for y, x in sorted(near_props):
        blur, size = FAR_BLUR + (NEAR_BLUR - FAR_BLUR) * y / NEAR_DEPTH, 0.07 + NEAR_GROWTH * y
        _put(canvas, _pick(scene.ground, rng), (x, horizon + y), size, blur, (HAZE / 2, sky_low), standing=True)
    return canvas


def _depth(side_px: int, sky_px: int) -> Image.Image:
    """How far the ground is out of focus: wholly at the horizon, not at all from a third of the way on."""
    t = (np.arange(side_px) - sky_px) / (side_px - sky_px)
    share = np.clip(1 - 3 * t, 0, 1) * (t > 0)
    return Image.fromarray(np.repeat((255 * share).astype(np.uint8)[:, None], side_px, 1))


def _pick(keys: tuple[str, ...], rng: np.random.Generator) -> str:
    return keys[int(rng.integers(len(keys)))]


def _spread(rng: np.random.Generator, n: int) -> np.ndarray:
    """n positions in [0,1], one in each n-th of the width, in random order of depth."""
    return rng.permutation((np.arange(n) + rng.uniform(0.1, 0.9, n)) / n)


def _put(
    canvas: Image.Image,
    prop: str,
    at: tuple[float, float],
    size: float,
    blur: float,
    haze: tuple[float, np.ndarray],
    standing: bool = False,
) -> None:
    """Paste a prop with its middle and lower edge `at`, out of focus by `blur`, mixed with a share of the air's colour."""
    side_px, (x, base_y), (share, colour) = canvas.width, at, haze
    item, margin_px = _soft_prop(prop, max(4, round(side_px * size)), round(side_px * blur, 1))
    if standing:
        width_px = item.width - 2 * margin_px
        _shadow(canvas, round(x * side_px - width_px / 2), round(base_y * side_px), width_px, dark=70)
    item = _lit(item, "#" + bytes(colour.clip(0, 255).astype(np.uint8)).hex(), share)
    canvas.paste(item, (round(x * side_px - item.width / 2), round(base_y * side_px) - item.height + margin_px), item)


@lru_cache(maxsize=8192)
def _soft_prop(prop: str, size_px: int, blur_px: float) -> tuple[Image.Image, int]:
    """A prop as a lens out of focus shows it, and the transparent margin that this took."""
    item, margin_px = render("props", prop, size_px), round(3 * blur_px) + 1
    wide = Image.new("RGBA", (item.width + 2 * margin_px, item.height + 2 * margin_px))
    wide.paste(item, (margin_px, margin_px))
    return wide.convert("RGBa").filter(ImageFilter.GaussianBlur(blur_px)).convert("RGBA"), margin_px


def _stand(canvas: Image.Image, item: Image.Image, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    mask = Image.new("L", canvas.size)
    mask.paste(item.getchannel("A"), (x, y))
    canvas.paste(item, (x, y), item)
    return np.asarray(canvas), np.asarray(mask)


def _shadow(canvas: Image.Image, x: int, base_y: int, width: int, dark: int = 110) -> None:
    """A soft contact shadow under what stands at `x` on `base_y`, `width` wide."""
    high, margin = max(2, width // 9), width // 6 + 2
    layer = Image.new("L", (width + 2 * margin, 2 * high + 2 * margin))
    top = margin + high
    oval = [margin + width * 0.06, top - high * 0.75, margin + width * 0.94, top + high * 0.5]
    ImageDraw.Draw(layer).ellipse(oval, fill=dark)
    canvas.paste((12, 12, 24), (x - margin, base_y - top), layer.filter(ImageFilter.GaussianBlur(width / 22)))


def _jitter(colour: str, rng: np.random.Generator) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], float)
    return rgb * rng.uniform(0.93, 1.05) + rng.normal(0, 4, 3)


def _lit(item: Image.Image, colour: str, share: float) -> Image.Image:
    tinted = Image.blend(item.convert("RGB"), Image.new("RGB", item.size, colour), share)
    tinted.putalpha(item.getchannel("A"))
    return tinted


def _turn_hue(item: Image.Image, turn: int) -> Image.Image:
    h, s, v = item.convert("RGB").convert("HSV").split()
    out = Image.merge("HSV", (h.point([(p + turn) % 256 for p in range(256)]), s, v)).convert("RGB")
    out.putalpha(item.getchannel("A"))
    return out
