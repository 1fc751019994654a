"""The stored creatives that renditions and extensions are made from, and where the product is in them."""

import hashlib

import numpy as np

from adbooster.pictures import images
from adbooster.pictures.cutouts import ON
from adbooster.pictures.layout import Box
from adbooster.storage.objects import Root


class AlteredMaster(Exception):
    """A creative's file is not the one that its row names."""


def read_master(root: Root, uri: str, sha256: str) -> np.ndarray:
    """A stored creative, uint8 [H,W,3].

    raises  FileNotFoundError, UnreadableImage, and AlteredMaster if the file is not the one that was proven
    """
    content = root.read(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise AlteredMaster
    return images.decode(content)


def product_alpha(root: Root, mask_uri: str, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """A product's stored mask where the product stands in a creative of (height, width) `shape`, uint8 [H,W]."""
    mask_u8 = images.decode_mask(root.read(mask_uri))
    ys, xs = np.nonzero(mask_u8 > ON)
    placed = np.zeros(shape, np.uint8)
    if len(ys):
        cut = np.ascontiguousarray(mask_u8[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])
        placed[box.slices] = images.resize(cut, box.width_px, box.height_px)
    return placed
