"""How well products are cut out, against true alpha: renders on pages of several colours, with and without a soft shadow.

    python -m tests.benchmarks.cutout_quality               # all 36 products: 216 photos, JPEG at quality 80
    python -m tests.benchmarks.cutout_quality --products bicycle scarf --sheet cutouts.png
    python -m tests.benchmarks.cutout_quality --side-px 1080    # the products at three quarters of that, edges as sharp

All sides are one run: the network's mask as it was refined before matting had a prior (`former`), and as prepare refines it,
with `holes: never`, `sure` and `all`. By photo: IoU of
alpha > 127; SAD (thousands), MSE (x 1000) and gradient error (Rhemann et al., 2009: sum of squared differences of
Gaussian gradients, sigma 1.4, thousands); hole pixels found, of those that the page shows through and the product
encloses; colour error (levels, mean over the rim) of the cut-out on a dark scene against the true product on it.
"""

import argparse
import io
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from adbooster.models.saliency import SaliencyNet
from adbooster.models.settings import Masking
from adbooster.pictures import cutouts
from adbooster.pictures.matting import product_mask
from adbooster.tiny import world
from tests.benchmarks import former_masking

MODEL = Path(world.__file__).parent / "models" / "mask" / "u2netp.onnx"
SIDE_PX, QUALITY = 512, 80
PAGES = {"white": (255, 255, 255), "grey": (222, 222, 222), "cream": (247, 238, 218)}
DARK = (24, 28, 40)


class Photo(NamedTuple):
    """A made photo, uint8 [S,S,3], the true alpha [S,S], and the true product on a dark scene [S,S,3]."""

    image: np.ndarray
    alpha: np.ndarray
    on_dark: np.ndarray


def photo(product: str, page: tuple[int, int, int], shadow: bool, side_px: int = SIDE_PX) -> Photo:
    item = world.render("products", product, world.RENDER_PX)
    if side_px != SIDE_PX:
        item = enlarged(item, 0.75 * side_px / max(item.size))
    x, y = (side_px - item.width) // 2, (side_px - item.height) // 2
    canvas, dark = (Image.new("RGB", (side_px, side_px), colour) for colour in (page, DARK))
    if shadow:
        layer, wide = Image.new("L", canvas.size), item.width
        base = y + item.height
        ImageDraw.Draw(layer).ellipse(
            [x - wide * 0.02, base - wide * 0.09, x + wide * 1.02, base + wide * 0.07], fill=95
        )
        canvas.paste((40, 40, 44), mask=layer.filter(ImageFilter.GaussianBlur(wide / 18)))
    mask = Image.new("L", canvas.size)
    mask.paste(item.getchannel("A"), (x, y))
    for under in (canvas, dark):
        under.paste(item, (x, y), item)
    stored = io.BytesIO()
    canvas.save(stored, "JPEG", quality=QUALITY)
    return Photo(np.asarray(Image.open(stored)), np.asarray(mask), np.asarray(dark))


def enlarged(item: Image.Image, times: float) -> Image.Image:
    """A render scaled up, the slope of its alpha set back to what it was in pixels."""
    item = item.resize((round(item.width * times), round(item.height * times)), Image.Resampling.BICUBIC)
    alpha = ((np.asarray(item.getchannel("A"), float) / 255 - 0.5) * times + 0.5).clip(0, 1)
    item.putalpha(Image.fromarray((alpha * 255).round().astype(np.uint8)))
    return item


def holes(alpha: np.ndarray) -> np.ndarray:
    """bool [S,S]: where the page shows through and the product encloses it, in parts of 12 pixels and more."""
    parts, n = ndimage.label(alpha < 10)
    sizes = np.bincount(parts.ravel(), minlength=n + 1)
    inside = [i for i in range(1, n + 1) if i != parts[0, 0] and sizes[i] >= 12]
    return np.isin(parts, inside)


def errors(seen: Photo, mask: np.ndarray) -> dict[str, float]:
    a, b = (x.astype(np.float64) / 255 for x in (mask, seen.alpha))
    gradients = [ndimage.gaussian_gradient_magnitude(x, 1.4) for x in (a, b)]
    union = ((mask > 127) | (seen.alpha > 127)).sum()
    open_ = holes(seen.alpha)
    rim = (seen.alpha > 0) & (seen.alpha < 255)
    return {
        "iou": ((mask > 127) & (seen.alpha > 127)).sum() / union,
        "sad": np.abs(a - b).sum() / 1000,
        "mse": ((a - b) ** 2).mean() * 1000,
        "gradient": ((gradients[0] - gradients[1]) ** 2).sum() / 1000,
        "holes_px": float(open_.sum()),
        "holes_found_px": float((open_ & (mask < 64)).sum()),
        "rim": float(np.abs(on_dark(seen.image, mask).astype(float) - seen.on_dark)[rim].mean()),
        "product_lost": float((mask[seen.alpha == 255] < 192).mean()),
    }


def on_dark(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The cut-out, with its estimated colours, on a dark scene."""
    out = np.empty_like(image)
    out[:] = DARK
    if not (mask > cutouts.ON).any():
        return out
    cutout = cutouts.cut(image, mask)
    ys, xs = np.nonzero(mask > cutouts.ON)
    window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    share = cutout.alpha[..., None] / 255
    out[window] = (cutout.colours * share + np.array(DARK) * (1 - share)).round().astype(np.uint8)
    return out


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    out = {k: float(np.mean([r[k] for r in rows])) for k in ("iou", "sad", "mse", "gradient", "rim", "product_lost")}
    found, there = (sum(r[k] for r in rows) for k in ("holes_found_px", "holes_px"))
    return out | {"holes": found / there if there else float("nan")}


SIDES = {"former": "sure", "never": "never", "sure": "sure", "all": "all"}


def mask_of(side: str, image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    if side == "former":
        return former_masking.refined(image, probability, "sure").mask_u8
    return product_mask(image, probability, None, Masking().solve_px, SIDES[side]).mask_u8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", nargs="*", default=list(world.PRODUCTS))
    parser.add_argument("--side-px", type=int, default=SIDE_PX, help="of the photos")
    parser.add_argument("--sheet", type=Path, help="a sheet of the photo, and both cut-outs on a dark scene")
    given = parser.parse_args()
    net, rows, sheet, started = SaliencyNet(MODEL, "cpu"), [], [], time.monotonic()
    for product in given.products:
        for page, colour in PAGES.items():
            for shadow in (False, True):
                seen = photo(product, colour, shadow, given.side_px)
                probability, masks = net.probabilities(seen.image), {}
                for side in SIDES:
                    began = time.process_time()
                    masks[side] = mask_of(side, seen.image, probability)
                    seconds = time.process_time() - began
                    found = errors(seen, masks[side]) | {"seconds": seconds}
                    rows.append((side, page, shadow, found))
                if shadow:
                    sheet.append(
                        np.concatenate([seen.image, *(on_dark(seen.image, masks[s]) for s in ("never", "all"))], 1)
                    )
        print(product, flush=True)
    print(table(rows))
    print(f"{len(rows) // len(SIDES)} photos of {given.side_px} px, JPEG {QUALITY}, {time.monotonic() - started:.0f} s")
    if given.sheet:
        Image.fromarray(np.concatenate(sheet)).save(given.sheet)


def table(rows: list[tuple[str, str, bool, dict[str, float]]]) -> str:
    head = ("page", "shadow", "holes", "IoU", "SAD", "MSE", "gradient", "holes found", "rim", "product lost", "s")
    lines = [head, ("---",) * len(head)]
    groups = [(page, shadow) for page in PAGES for shadow in (False, True)] + [("all", None)]
    for page, shadow in groups:
        for side in SIDES:
            some = [f for s, p, w, f in rows if s == side and (shadow is None or (p, w) == (page, shadow))]
            mean = summary(some)
            figures = [f"{mean[k]:.3f}" for k in ("iou", "sad", "mse", "gradient", "holes", "rim", "product_lost")]
            seconds = f"{np.mean([f['seconds'] for f in some]):.2f}"
            lines.append((page, {True: "yes", False: "no", None: ""}[shadow], side, *figures, seconds))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
