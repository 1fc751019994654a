"""The stored creatives that renditions and extensions are made from, and where the product is in them."""

import hashlib

import numpy as np

from adbooster.pictures import images
from adbooster.pictures.cutouts import ON
from adbooster.pictures.layout import Box
from adbooster.storage.objects import Root


class AlteredMaster(Exception):
    """A creative's file is not the one that its row names."""


UNUSABLE = (FileNotFoundError, images.UnreadableImage, AlteredMaster)


def unusable_word(e: Exception) -> str:
    """The reject word of one of UNUSABLE."""
    if isinstance(e, AlteredMaster):
        return "altered_master"
    return "missing_image" if isinstance(e, FileNotFoundError) else "unreadable_image"


def read_master(root: Root, uri: str, sha256: str) -> np.ndarray:
    """A stored creative, uint8 [H,W,3].

    raises  FileNotFoundError, UnreadableImage, and AlteredMaster if the file is not the one that was proven
    """
    content = root.read(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise AlteredMaster
    return images.decode(content)


def read_product_mask(root: Root, mask_uri: str) -> np.ndarray:
    """A photo's product mask without the page around it, uint8 [h,w]; of no size where there is no product."""
    mask = images.decode_mask(root.read(mask_uri))
    ys, xs = (np.flatnonzero((mask > ON).any(axis=axis)) for axis in (1, 0))
    return np.ascontiguousarray(mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1] if len(ys) else mask[:0, :0])


def placed(mask_u8: np.ndarray, box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """A product's mask, cut to the product, where that stands in a creative of (height, width) `shape`: uint8 [H,W]."""
    whole = np.zeros(shape, np.uint8)
    if mask_u8.size:
        whole[box.slices] = images.resize(mask_u8, box.width_px, box.height_px)
    return whole
