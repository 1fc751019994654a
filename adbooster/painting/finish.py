"""From a painting to the file that is published: upscaled, shaded, the product put back, encoded and proven.

`Finisher` is the stage after painting: it decides nothing, and needs no network.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
from scipy import ndimage

from adbooster.contracts import schema
from adbooster.contracts.errors import AdboosterError
from adbooster.contracts.naming import digest, seed_of
from adbooster.contracts.recipe import LOSSLESS, Recipe
from adbooster.painting import candidates
from adbooster.painting.config import PaintingConfig
from adbooster.painting.placing import read_cutout
from adbooster.pictures import compositing, grounding, images, lighting, proof, toning
from adbooster.pictures.cutouts import ON, Cutout
from adbooster.pictures.layout import Box
from adbooster.storage.objects import Root

IO_THREADS = 4
SHARED = (
    *("request_id", "product_id", "cohort_id", "placement", "prompt", "negative_prompt", "prompt_style"),
    *("text", "photo_sha256", "candidate_scores", "candidate_rejects", "round", "gpu_s", "paint_batch", "arm"),
)
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


class Finisher:
    """Finishes and stores what won, proven on the bytes: schema.PAINTED to schema.STAGED.

    When it returns the files of its rows are in the storage, and nothing names them yet.
    """

    def __init__(self, root: Root, config: PaintingConfig, recipe_id: str, weights_revision: str):
        self.root, self.recipe = root, config.recipe
        self.names = {"recipe_id": recipe_id, "weights_revision": weights_revision, "run_id": config.run_id}
        self.cutout = lru_cache(8)(partial(read_cutout, root))

    def __call__(self, rows: pa.Table) -> pa.Table:
        with ThreadPoolExecutor(IO_THREADS) as pool:
            finished = [row for some in pool.map(self._finished, rows.to_pylist()) for row in some]
        return pa.Table.from_pylist(finished, schema.STAGED)

    def _finished(self, row: dict) -> list[dict]:
        """The rows of a request's creatives, best first; their files are stored."""
        shared = {name: row[name] for name in SHARED} | self.names
        shared |= {"neutral_score": row["own_scores"][0], "reject": None}
        winners = [self._winner(row, pick) for pick in row["picks"]]
        if row["shown"] is not None:
            self._show(row, {p["number"]: picture for p, (_, picture) in zip(row["picks"], winners, strict=True)})
        if not winners:
            return [shared | self._original(row)]
        return [shared | values | {"rank": rank} for rank, (values, _) in enumerate(winners)]

    def _winner(self, row: dict, pick: dict) -> tuple[dict, np.ndarray]:
        """A winner's row and its picture, uint8 [H,W,3]."""
        box = Box(**pick["layout"])
        painted = np.frombuffer(pick["painted"], np.uint8).reshape(pick["height_px"], pick["width_px"], 3)
        product = self.cutout(row["photo_uri"], row["mask_uri"]).scaled(box.width_px, box.height_px)
        picture = finish(painted, product, box, self.recipe.size(row["placement"]), self.recipe)
        file = encode(picture, product, box, self.recipe)
        proven = {"product_max_diff": file.product_max_diff, "psnr_db": file.psnr_db}
        values = _file(self.root.put(file.content, file.extension), len(file.content), picture) | {
            "creative_id": digest(row["request_id"], str(pick["number"]))[:16],
            "seed": seed_of(row["request_id"], pick["number"]),
            "layout": pick["layout"],
            "clip_score": pick["score"],
            "margin": pick["score"] - max(row["own_scores"]),
            "gates": pick["gates"] | proven,
            "light": pick["light"],
            "fallback": False,
            "background_phash": pick["phash"],
            "background_simhash": pick["simhash"],
            "reward": pick["reward"],
            "unusable": pick["unusable"],
        }
        return values, picture

    def _original(self, row: dict) -> dict:
        """No painting passes and beats the product's own best picture, so that is the creative."""
        best = int(np.argmax(row["own_scores"]))
        uri = row["own_photo_uris"][best]
        content = self.root.read(uri)
        return _file(uri, len(content), images.decode(content)) | {
            "creative_id": digest(row["request_id"], "original")[:16],
            "rank": 0,
            "seed": 0,
            "clip_score": row["own_scores"][best],
            "margin": 0.0,
            "gates": {"product_max_diff": 0},
            "fallback": True,
            "fallback_reason": row["candidate_rejects"][-1] if row["candidate_rejects"] else "below_original",
        }

    def _show(self, row: dict, winners: dict[int, np.ndarray]) -> None:
        """Keep small pictures of all candidates for the page."""
        painted = []
        for c in row["shown"]:
            preview = np.frombuffer(c["preview"], np.uint8).reshape(c["height_px"], c["width_px"], 3)
            seed = seed_of(row["request_id"], c["number"])
            figures = json.loads(c["figures"])
            painted.append(candidates.candidate(c["number"], seed, c["score"], preview, c["word"], figures))
        candidates.write(self.root, self.names["run_id"], row, painted, winners, max(row["own_scores"]))


def _file(uri: str, size_bytes: int, picture_u8: np.ndarray) -> dict:
    high, wide = picture_u8.shape[:2]
    sha256 = uri.rsplit("/", 1)[-1].split(".")[0]
    return {"uri": uri, "sha256": sha256, "width": wide, "height": high, "size_bytes": size_bytes}
