"""From a painting to the file that is published: upscaled, shaded, the product put back, encoded and proven."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from adbooster.contracts.errors import AdboosterError
from adbooster.contracts.recipe import LOSSLESS, Recipe
from adbooster.pictures import compositing, grounding, images, lighting, proof, toning
from adbooster.pictures.cutouts import ON, Cutout
from adbooster.pictures.layout import Box

SHADOW = 0.45  # share of the light that the darkest part of a contact shadow removes
ALREADY_DARK = 0.82  # a scene this much darker under the product than beside it has its own shadow


@dataclass(frozen=True)
class File:
    """A finished picture as it is stored.

    product_max_diff  largest difference (0-255) from the photo where the product is solid, read back from `content`
    psnr_db           of the product in a lossy file; None when lossless
    """

    content: bytes
    extension: str
    product_max_diff: int
    psnr_db: float | None


def finish(painted_u8: np.ndarray, cutout: Cutout, box: Box, size: tuple[int, int], recipe: Recipe) -> np.ndarray:
    """The scene at (width, height) `size` with the product at its own resolution: uint8 [H,W,3].

    Where the recipe asks for it the scene is drawn toward the product, in colour at painting size, in light at full size.
    """
    harmonise, product = recipe.harmonise, cutout.scaled(box.width_px, box.height_px)
    if harmonise.exposure_stops or harmonise.white_balance:
        painted_u8 = toning.toned(painted_u8, product, harmonise.exposure_stops, harmonise.white_balance)
    scene = images.resize(painted_u8, *size, bicubic=True)
    if harmonise.grain:
        scene = toning.grained(scene, toning.missing_grain(painted_u8, product))
    if harmonise.reflection and grounding.glossy(painted_u8, (box.y_px + box.height_px) / size[1]):
        scene = grounding.reflect(scene, product, box, harmonise.reflection)
    if recipe.shadow == "contact":
        scene = contact_shadow(scene, product, box)
    elif recipe.shadow == "grounded":
        light = lighting.light_of(painted_u8, compositing.placed_alpha(product, box, size))
        scene = grounding.shade(scene, product, box, light)
    return compositing.compose(scene, product, box)


def contact_shadow(scene_u8: np.ndarray, cutout: Cutout, box: Box) -> np.ndarray:
    """The scene with a soft shadow where the product touches the ground, unless the model painted one there."""
    alpha = cutout.scaled(box.width_px, box.height_px).alpha
    foot = alpha[-max(1, box.height_px // 8) :].max(axis=0) > ON  # columns near the ground
    if not foot.any():
        return scene_u8
    left, right = box.x_px + int(foot.argmax()), box.x_px + len(foot) - int(foot[::-1].argmax())
    thick = max(2, (right - left) // 12)
    ground = box.y_px + box.height_px
    if _already_dark(scene_u8, left, right, ground, thick):
        return scene_u8
    high, wide = scene_u8.shape[:2]
    ys, xs = np.ogrid[:high, :wide]
    ellipse = ((xs - (left + right) / 2) / max(1, (right - left) / 2)) ** 2 + ((ys - ground) / thick) ** 2 <= 1
    soft = ndimage.gaussian_filter(ellipse.astype(np.float32), thick * 0.8)[..., None]
    return (scene_u8 * (1 - SHADOW * soft)).round().astype(np.uint8)


def _already_dark(scene_u8: np.ndarray, left: int, right: int, ground: int, thick: int) -> bool:
    """Whether the strip just below the product is darker than what lies beside it at the same height."""
    light = scene_u8[ground : ground + thick].mean(axis=2) if ground < scene_u8.shape[0] else np.zeros((0, 0))
    beside = np.concatenate([light[:, max(0, 2 * left - right) : left], light[:, right : 2 * right - left]], axis=1)
    under = light[:, left:right]
    return bool(beside.size and under.size and under.mean() < ALREADY_DARK * beside.mean())


def encode(picture_u8: np.ndarray, cutout: Cutout, box: Box, recipe: Recipe) -> File:
    """The picture's file, checked on the bytes that will be stored.

    raises AdboosterError if a lossless file does not give back the photo's pixels where the product is solid
    """
    content, extension = images.encode(picture_u8, recipe.image_format, recipe.quality)
    stored = images.decode(content)
    difference = proof.product_difference(stored, cutout, box)
    if recipe.image_format not in LOSSLESS:
        return File(content, extension, difference, proof.product_psnr(stored, cutout, box))
    if difference:
        raise AdboosterError(f"the stored picture alters the product by up to {difference} levels; nothing is kept")
    return File(content, extension, difference, None)
