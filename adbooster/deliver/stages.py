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
from adbooster.deliver.masters import UNUSABLE, placed, read_master, read_product_mask, unusable_word
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.provenance import credentials, xmp
from adbooster.provenance.credentials import SPARE_BYTES, FileSigner
from adbooster.provenance.signing import Signing, read_anchors
from adbooster.provenance.xmp import Marks
from adbooster.storage.objects import Root


class Renderer:
    """schema.RENDITION_REQUESTS to schema.RENDITIONS; rows of one creative one after another decode it once."""

    def __init__(self, root: Root, how: Encoding, allowed: Fidelities, signing: Signing | None = None):
        """raises ConfigError or SigningError where the certificates and the key that `signing` names make no signer here"""
        self.root, self.how, self.allowed = root, how, allowed
        self.signer = FileSigner(signing) if signing else None  # reads the key in the stage's own process
        self.anchors = read_anchors(signing.trust_anchors) if signing else ""
        self.photo: tuple[str, bytes] = ("", b"")
        self.last: tuple[str, np.ndarray, np.ndarray] = ("", np.zeros(0), np.zeros(0))
        self.last_cut: tuple[str, np.ndarray] = ("", np.zeros(0))

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [{"rendition_id": row["rendition_id"]} | self._rendered(row) for row in rows.to_pylist()]
        return schema.fill(pa.Table.from_pylist(done, schema.RENDITIONS), schema.RENDITIONS)

    def _rendered(self, row: dict) -> dict[str, Any]:
        try:
            master, product = self._master(row)
            photo = self._photo(row)
        except UNUSABLE as e:
            return {"reject": unusable_word(e)}
        size = row["width_px"], row["height_px"]
        shown = Box(**row["frame"]).slices
        picture, product = (images.resize(np.ascontiguousarray(a[shown]), *size) for a in (master, product))
        word = "over_budget"
        for kind in row["formats"]:
            file, content = self._encoded(row, picture, kind, photo)
            if file is None:
                continue
            faithful, shown = None, picture
            if file.quality is not None:
                shown = images.decode(file.content)
                faithful = encoding.fidelity(picture, shown, product)
                if not self._allowed(faithful):
                    word = "product_altered"
                    continue
            return self._stored(row, shown, file._replace(content=content), faithful)
        return {"reject": word}

    def _master(self, row: dict) -> tuple[np.ndarray, np.ndarray]:
        """What is cut: the creative or its extension, uint8 [H,W,3], and the product's mask in it, uint8 [H,W].

        raises  as masters.read_master
        """
        uri, sha256 = row["master_uri"], row["master_sha256"]
        if row["extended_uri"]:
            uri, sha256 = row["extended_uri"], row["extended_sha256"]
        if self.last[0] != uri + row["mask_uri"]:
            master = read_master(self.root, uri, sha256)
            if self.last_cut[0] != row["mask_uri"]:  # creatives of one product have the same
                self.last_cut = row["mask_uri"], read_product_mask(self.root, row["mask_uri"])
            mask = placed(self.last_cut[1], Box(**row["layout"]), master.shape[:2])
            self.last = (uri + row["mask_uri"], master, mask)
        return self.last[1], self.last[2]

    def _photo(self, row: dict) -> bytes:
        """The product's photo, which a signature names; empty where files are not signed."""
        if self.signer and self.photo[0] != row["photo_uri"]:
            self.photo = row["photo_uri"], self.root.read(row["photo_uri"])
        return self.photo[1]

    def _encoded(
        self, row: dict, picture_u8: np.ndarray, kind: FileFormat, photo: bytes
    ) -> tuple[Encoded | None, bytes]:
        """The picture within its bytes, before it is signed, and the content of its file; None if it does not fit."""
        quality, marks = (self.how.min_quality, self.how.quality), xmp.packet(marks_of(row))
        if self.signer is None:
            file = encoding.encode(picture_u8, kind, row["max_bytes"], quality, marks)
            return file, file.content if file else b""
        room, photo_sha256 = row["max_bytes"] - self.signer.reserve_bytes, hashlib.sha256(photo).hexdigest()
        # A photo with a manifest of its own adds it, a timestamp what its authority says: each file shows how much that was.
        while (file := encoding.encode(picture_u8, kind, room, quality, marks)) is not None:
            content = self.signer.sign(file.content, photo, photo_sha256, row["digital_source_type"])
            if len(content) <= row["max_bytes"]:
                return file, content
            room = min(room - 1, row["max_bytes"] - (len(content) - len(file.content)) - SPARE_BYTES)
        return None, b""

    def _allowed(self, faithful: Fidelity) -> bool:
        allowed = self.allowed
        return (
            faithful.psnr_db >= allowed.min_psnr_db
            and faithful.delta_e_mean <= allowed.max_delta_e_mean
            and faithful.delta_e_p99 <= allowed.max_delta_e_p99
        )

    def _stored(self, row: dict, shown_u8: np.ndarray, file: Encoded, faithful: Fidelity | None) -> dict[str, Any]:
        uri = self.root.put(file.content, encoding.EXTENSIONS[file.format])
        if not self._holds(self.root.read(uri), file, shown_u8, row):
            return {"reject": "failed_readback"}
        return {
            "uri": uri,
            "sha256": hashlib.sha256(file.content).hexdigest(),
            "width_px": shown_u8.shape[1],
            "height_px": shown_u8.shape[0],
            "size_bytes": len(file.content),
            "format": file.format,
            "quality": file.quality,
            "signed_by": self.signer.signed_by if self.signer else None,
        } | (faithful._asdict() if faithful else {})

    def _holds(self, stored: bytes, file: Encoded, shown_u8: np.ndarray, row: dict) -> bool:
        """Whether what the storage gives back is the file that was put, with its marks, its signature and every pixel.

        shown_u8  uint8 [H,W,3]: the file's pixels before it was signed
        """
        if stored != file.content or xmp.read(stored) != xmp.expected(marks_of(row)):
            return False
        if self.signer is None:
            return file.quality is not None or np.array_equal(images.decode(stored), shown_u8)
        found = credentials.read(stored, self.anchors)
        if found is None or not found.holds or (self.anchors and found.state != "Trusted"):
            return False
        return np.array_equal(images.decode(stored), shown_u8)


def marks_of(row: dict) -> Marks:
    """What the file of a row of schema.RENDITION_REQUESTS says of itself."""
    names = [name for name in Marks._fields if name != "source"]
    return Marks(**{name: row[name] for name in names}, source=f"urn:sha256:{row['master_sha256']}")
