"""The stages that extend creatives: shown to the model, painted until the seam is hidden, joined, stored, and proven."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.naming import seed_of
from adbooster.deliver import extension
from adbooster.deliver.masters import UNUSABLE, placed, read_master, read_product_mask, unusable_word
from adbooster.engine.stage_process import in_network
from adbooster.models.outpainter import Painting
from adbooster.painting.config import PaintingConfig
from adbooster.painting.painter import load_inspector, load_outpainter, load_ranker
from adbooster.pictures import images, scenes
from adbooster.pictures.layout import Box
from adbooster.storage.objects import Root


class Framer:
    """Lays creatives on the canvases of their frames: schema.EXTENSION_REQUESTS to schema.CANVASES."""

    def __init__(self, root: Root):
        self.root = root

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [row | self._framed(row) for row in rows.to_pylist()]
        return schema.fill(pa.Table.from_pylist(done, schema.CANVASES), schema.CANVASES)

    def _framed(self, row: dict) -> dict[str, Any]:
        try:
            master = read_master(self.root, row["master_uri"], row["master_sha256"])
            alpha = placed(read_product_mask(self.root, row["mask_uri"]), Box(**row["layout"]), master.shape[:2])
        except UNUSABLE as e:
            return {"reject": unusable_word(e)}
        frame, there = Box(**row["frame"]), Box(**row["kept"])
        canvas = extension.canvas(master, frame, there, row["scale"])
        product = extension.canvas(np.repeat(alpha[..., None], 3, axis=2), frame, there, row["scale"]).seen_u8[..., 0]
        product = np.where(canvas.known_u8 == 255, product, 0).astype(np.uint8)
        high, wide = product.shape
        size = {"width_px": wide, "height_px": high, "known": vars(canvas.known)}
        return size | {"seen": canvas.seen_u8.tobytes(), "product": product.tobytes()}


class Extender:
    """Paints canvases until the seam is hidden and no gate rejects the picture: schema.CANVASES to schema.EXTENDED.

    A creative has passed the gates; what is new has to: people, writing, another product, unsafe content. The gate on the
    product's shape is left out, as nothing near it is painted.
    """

    def __init__(self, config: PaintingConfig, attempts: int, max_seam: float | None):
        gates = config.recipe.gates.model_copy(update={"max_expansion_share": None})
        config = config.model_copy(update={"recipe": config.recipe.model_copy(update={"gates": gates})})
        self.outpainter, self.ranker = load_outpainter(config), load_ranker(config)
        self.inspector = load_inspector(config, self.ranker)
        self.attempts, self.max_seam = attempts, max_seam

    def __call__(self, rows: pa.Table) -> pa.Table:
        started = time.monotonic()
        asked = rows.to_pylist()
        done: list[dict | None] = [None] * len(asked)
        with in_network():
            canvases = [extension.Canvas(_pixels(row, "seen"), Box(**row["known"])) for row in asked]
            conditions = [self.outpainter.condition(c.seen_u8, c.known_u8) for c in canvases]
        for attempt in range(self.attempts):
            todo = [i for i, found in enumerate(done) if found is None or found["reject"]]
            if not todo:
                break
            paintings = [
                Painting(
                    conditions[i], row["prompt"], row["negative_prompt"] or "", seed_of(row["extension_id"], attempt)
                )
                for i in todo
                for row in (asked[i],)
            ]
            with in_network():
                painted = self.outpainter.paint(paintings)
            for i, found in zip(todo, self._judged([asked[i] for i in todo], painted), strict=True):
                done[i] = found | {"attempts": attempt + 1}
        shared = {"gpu_s": (time.monotonic() - started) / len(asked)}
        found = [row | (new or {}) | shared for row, new in zip(asked, done, strict=True)]
        return schema.fill(pa.Table.from_pylist(found, pa.schema([*schema.CANVASES, *_NEW])), schema.EXTENDED)

    def _judged(self, rows: Sequence[dict], painted: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """What was painted, its seam, and the word for what is wrong with it, in the part of it that the frame shows."""
        pictures, alphas, seams = [], [], []
        for row, picture in zip(rows, painted, strict=True):
            known, shown = Box(**row["known"]), _shown(row)
            whole = Box(0, 0, row["width_px"], row["height_px"])
            joined = extension.join(_pixels(row, "seen"), picture, whole, known, 1.0)
            pictures.append(np.ascontiguousarray(joined[shown.slices]))
            alphas.append(np.ascontiguousarray(_pixels(row, "product")[shown.slices]))
            there = Box(known.x_px - shown.x_px, known.y_px - shown.y_px, known.width_px, known.height_px)
            seams.append(extension.seam(pictures[-1], there))
        without = [scenes.scene_only(p, a) for p, a in zip(pictures, alphas, strict=True)]
        with in_network():
            vectors = self.ranker.embed_images(without)
        verdicts = self.inspector.inspect(pictures, alphas, vectors, [row["text"] or "" for row in rows])
        return [
            {"painted": picture.tobytes(), "seam": shown, "reject": self._shows(shown) or word}
            for picture, shown, (word, _) in zip(painted, seams, verdicts, strict=True)
        ]

    def _shows(self, seam: float) -> str | None:
        return "visible_seam" if self.max_seam is not None and seam > self.max_seam else None


_NEW = [schema.EXTENDED.field(name) for name in ("painted", "seam", "attempts", "gpu_s")]


class Joiner:
    """Joins, stores and proves what was painted: schema.EXTENDED to schema.EXTENSIONS."""

    def __init__(self, root: Root):
        self.root = root

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._joined(row) for row in rows.to_pylist()]
        return schema.fill(pa.Table.from_pylist(done, schema.EXTENSIONS), schema.EXTENSIONS)

    def _joined(self, row: dict) -> dict[str, Any]:
        figures = {name: row[name] for name in ("extension_id", "seam", "attempts", "gpu_s")}
        master = read_master(self.root, row["master_uri"], row["master_sha256"])
        frame, there = Box(**row["frame"]), Box(**row["kept"])
        picture = extension.join(master, _pixels(row, "painted"), frame, there, row["scale"])
        uri = self.root.put(images.encode_lossless(picture), "webp")
        content = self.root.read(uri)
        if not extension.holds(images.decode(content), master, frame, there):
            return figures | {"reject": "failed_readback"}
        return figures | {"extended_uri": uri, "extended_sha256": hashlib.sha256(content).hexdigest()}


def _shown(row: dict) -> Box:
    """What the frame shows of a canvas, which is a little larger; it ends with the creative where the frame goes no further."""
    frame, there, known = Box(**row["frame"]), Box(**row["kept"]), Box(**row["known"])
    sides = []
    for n, (start, length), (first, covered), most in (
        (frame.width_px, (there.x_px, there.width_px), (known.x_px, known.width_px), row["width_px"]),
        (frame.height_px, (there.y_px, there.height_px), (known.y_px, known.height_px), row["height_px"]),
    ):
        low = 0 if start else first
        high = min(most, round(n * row["scale"])) if start + length < n else first + covered
        sides.append((low, max(high, first + covered) - low))
    return Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def _pixels(row: dict, name: str) -> np.ndarray:
    """An array of a row in flight, uint8 [H,W,3], or [H,W] of the product's alpha."""
    shape = row["height_px"], row["width_px"], *((3,) if name in ("seen", "painted") else ())
    return np.frombuffer(row[name], np.uint8).reshape(shape)
