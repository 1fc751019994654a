"""The stage before painting: products cut from their photos and put in their places, without any network."""

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.naming import digest, seed_of
from adbooster.models.clip_input import clip_pixels, read_clip_input
from adbooster.painting.config import PaintingConfig
from adbooster.pictures import compositing, cutouts, images, layout, lighting
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

JUDGED_PX = 320  # what salient-object models look at


class Place(NamedTuple):
    """A product in one of its places: shared by all cohorts and candidates with this place.

    overlay  at the size that is painted; judged: at the size that gates look at, where that is larger
    """

    number: int
    box: layout.Box
    overlay: compositing.Overlay
    judged: compositing.Overlay
    light: lighting.Light  # on the product

    def row(self) -> dict:
        """As in schema.PLACED."""
        return {
            "number": self.number,
            "layout": vars(self.box),
            "painted": _row(self.overlay),
            "judged": None if self.judged is self.overlay else _row(self.judged),
            "light_deg": self.light.angle_deg,
            "light_confidence": self.light.confidence,
        }

    @staticmethod
    def read(row: dict) -> "Place":
        overlay = _overlay(row["painted"])
        judged = overlay if row["judged"] is None else _overlay(row["judged"])
        light = lighting.Light(row["light_deg"], row["light_confidence"])
        return Place(row["number"], layout.Box(**row["layout"]), overlay, judged, light)

    def small(self) -> tuple[cutouts.Cutout, layout.Box]:
        """The product at the size that gates look at, and its box there."""
        alpha = self.judged.alpha
        ys, xs = (np.nonzero(alpha.any(axis))[0] for axis in (1, 0))
        box = layout.Box(int(xs[0]), int(ys[0]), int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1)
        alpha = alpha[box.slices]
        share = np.maximum(alpha, 1)[..., None] / np.float32(255)
        colours = (self.judged.premultiplied[box.slices] / share).clip(0, 255).round().astype(np.uint8)
        return cutouts.Cutout(colours, colours, alpha), box


def _row(overlay: compositing.Overlay) -> dict:
    high, wide = overlay.alpha.shape
    arrays = {"premultiplied": overlay.premultiplied.tobytes(), "alpha": overlay.alpha.tobytes()}
    return {"width_px": wide, "height_px": high, **arrays}


def _overlay(row: dict) -> compositing.Overlay:
    shape = row["height_px"], row["width_px"]
    colours = np.frombuffer(row["premultiplied"], np.uint8).reshape(*shape, 3)
    return compositing.Overlay(colours, np.frombuffer(row["alpha"], np.uint8).reshape(shape))


class Placer:
    """Puts the products of requests in their places: schema.REQUESTS to schema.PLACED."""

    def __init__(self, root: Root, config: PaintingConfig):
        self.root, self.recipe, self.looks_at_finished = root, config.recipe, config.looks_at_finished
        self.clip_input = read_clip_input(local_copy(config.rank_model))
        self.cutout = lru_cache(8)(partial(read_cutout, root))
        self.place = lru_cache(64)(self._place)
        self.own_pixels = lru_cache(512)(self._own_pixels)

    def __call__(self, rows: pa.Table) -> pa.Table:
        asked = rows.to_pylist()
        return schema.extend(
            rows,
            schema.PLACED,
            places=[[place.row() for place in self.places(row)] for row in asked],
            own_pixels=[[self.own_pixels(uri) for uri in row["own_photo_uris"]] for row in asked],
        )

    def places(self, row: dict) -> list[Place]:
        """The places that the request's candidates of all its rounds stand in, by number."""
        k, first = self.recipe.candidates, row["round"] or 0
        numbers = {n % self.recipe.layouts for n in range(first * k, max(first + 1, self.recipe.max_rounds) * k)}
        product = (row["photo_uri"], row["mask_uri"], row["category"] or "", row["placement"])
        return [self.place(*product, n) for n in sorted(numbers)]

    def _place(self, photo_uri: str, mask_uri: str, category: str, placement: str, number: int) -> Place:
        """Place `number` of a product: it follows from the product and the recipe's seed, not from the cohort."""
        recipe, cutout = self.recipe, self.cutout(photo_uri, mask_uri)
        seed = seed_of(digest(photo_uri, mask_uri, placement, str(recipe.seed)), number)
        box = layout.place(cutout, recipe.size(placement), recipe.stand(category, placement), seed)
        size, painted = recipe.size(placement), recipe.paint_size(placement)
        overlay = judged = compositing.overlay(cutout, box, size, painted)
        if (looked_at := judged_size(painted)) != painted and self.looks_at_finished:
            judged = compositing.overlay(cutout, box, size, looked_at)
        return Place(number, box, overlay, judged, lighting.product_light(cutout))

    def _own_pixels(self, photo_uri: str) -> bytes:
        return clip_pixels(images.decode(self.root.read(photo_uri)), self.clip_input).tobytes()


def judged_size(painted: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that gates look at: as painted, or larger, so that the product is as sharp as when it is published."""
    factor = max(1.0, JUDGED_PX / min(painted))
    return round(painted[0] * factor), round(painted[1] * factor)


def read_cutout(root: Root, photo_uri: str, mask_uri: str) -> cutouts.Cutout:
    """A product cut from its stored photo by its stored mask."""
    photo = images.decode(root.read(photo_uri))
    return cutouts.cut(photo, images.decode_mask(root.read(mask_uri)))
