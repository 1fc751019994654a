"""The stage that makes renditions: cropped from stored creatives, encoded, stored, and read back from the storage."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from adbooster.channels.presets import FileFormat
from adbooster.contracts import schema
from adbooster.deliver import encoding
from adbooster.deliver.config import Encoding, Fidelities
from adbooster.deliver.encoding import Encoded, Fidelity
from adbooster.pictures import images
from adbooster.pictures.cutouts import ON
from adbooster.pictures.layout import Box
from adbooster.provenance import xmp
from adbooster.provenance.xmp import Marks
from adbooster.storage.objects import Root


class Renderer:
    """schema.RENDITION_REQUESTS to schema.RENDITIONS; rows of one creative one after another decode it once."""

    def __init__(self, root: Root, how: Encoding, allowed: Fidelities):
        self.root, self.how, self.allowed = root, how, allowed
        self.last: tuple[str, np.ndarray, np.ndarray] = ("", np.zeros(0), np.zeros(0))
        self.last_cut: tuple[str, np.ndarray] = ("", np.zeros(0))

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [{"rendition_id": row["rendition_id"]} | self._rendered(row) for row in rows.to_pylist()]
        return schema.fill(pa.Table.from_pylist(done, schema.RENDITIONS), schema.RENDITIONS)

    def _rendered(self, row: dict) -> dict[str, Any]:
        try:
            master, product = self._master(row)
        except FileNotFoundError:
            return {"reject": "missing_image"}
        except images.UnreadableImage:
            return {"reject": "unreadable_image"}
        except _Altered:
            return {"reject": "altered_master"}
        size = row["width_px"], row["height_px"]
        shown = Box(**row["frame"]).slices
        picture, product = (images.resize(np.ascontiguousarray(a[shown]), *size) for a in (master, product))
        word = "over_budget"
        for kind in row["formats"]:
            file = self._encoded(row, picture, kind)
            if file is None:
                continue
            faithful = None
            if file.quality is not None:
                faithful = encoding.fidelity(picture, images.decode(file.content), product)
                if not self._allowed(faithful):
                    word = "product_altered"
                    continue
            return self._stored(row, picture, file, faithful)
        return {"reject": word}

    def _master(self, row: dict) -> tuple[np.ndarray, np.ndarray]:
        """The creative, uint8 [H,W,3], and the product's mask in it, uint8 [H,W].

        raises  FileNotFoundError, UnreadableImage, and _Altered if the file is not the one that was proven
        """
        if self.last[0] != row["master_uri"] + row["mask_uri"]:
            content = self.root.read(row["master_uri"])
            if hashlib.sha256(content).hexdigest() != row["master_sha256"]:
                raise _Altered
            master = images.decode(content)
            mask = _placed(self._cut(row["mask_uri"]), Box(**row["layout"]), master.shape[:2])
            self.last = (row["master_uri"] + row["mask_uri"], master, mask)
        return self.last[1], self.last[2]

    def _cut(self, mask_uri: str) -> np.ndarray:
        """A photo's product mask without the page around it, uint8 [H,W]; creatives of one product have the same."""
        if self.last_cut[0] != mask_uri:
            mask = images.decode_mask(self.root.read(mask_uri))
            ys, xs = (np.flatnonzero((mask > ON).any(axis=axis)) for axis in (1, 0))
            cut = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] if len(ys) else mask[:0, :0]
            self.last_cut = mask_uri, np.ascontiguousarray(cut)
        return self.last_cut[1]

    def _encoded(self, row: dict, picture_u8: np.ndarray, kind: FileFormat) -> Encoded | None:
        quality = self.how.min_quality, self.how.quality
        return encoding.encode(picture_u8, kind, row["max_bytes"], quality, xmp.packet(marks_of(row)))

    def _allowed(self, faithful: Fidelity) -> bool:
        allowed = self.allowed
        return (
            faithful.psnr_db >= allowed.min_psnr_db
            and faithful.delta_e_mean <= allowed.max_delta_e_mean
            and faithful.delta_e_p99 <= allowed.max_delta_e_p99
        )

    def _stored(self, row: dict, picture_u8: np.ndarray, file: Encoded, faithful: Fidelity | None) -> dict[str, Any]:
        uri = self.root.put(file.content, encoding.EXTENSIONS[file.format])
        if not _holds(self.root.read(uri), file, picture_u8, marks_of(row)):
            return {"reject": "failed_readback"}
        return {
            "uri": uri,
            "sha256": hashlib.sha256(file.content).hexdigest(),
            "width_px": picture_u8.shape[1],
            "height_px": picture_u8.shape[0],
            "size_bytes": len(file.content),
            "format": file.format,
            "quality": file.quality,
        } | (faithful._asdict() if faithful else {})


class _Altered(Exception):
    """A creative's file is not the one that its row names."""


def marks_of(row: dict) -> Marks:
    """What the file of a row of schema.RENDITION_REQUESTS says of itself."""
    names = [name for name in Marks._fields if name != "source"]
    return Marks(**{name: row[name] for name in names}, source=f"urn:sha256:{row['master_sha256']}")


def _placed(cut_u8: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """A product's mask, cut to the product, where that stands in a creative of (height, width) `shape`."""
    placed = np.zeros(shape, np.uint8)
    if cut_u8.size:
        placed[box.slices] = images.resize(cut_u8, box.width_px, box.height_px)
    return placed


def _holds(stored: bytes, file: Encoded, picture_u8: np.ndarray, marks: Marks) -> bool:
    """Whether what the storage gives back is the file that was put, with its marks and, where lossless, every pixel."""
    if stored != file.content or xmp.read(stored) != xmp.expected(marks):
        return False
    return file.quality is not None or np.array_equal(images.decode(stored), picture_u8)
