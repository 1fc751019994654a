"""Masks as they were made before matting had a prior, in the actor that held the GPU: the yardstick of benchmarks."""

import io
import time
from contextlib import redirect_stdout
from unittest import mock

import numpy as np
import pyarrow as pa
import pymatting
from pymatting.preconditioner.ichol import CholeskyDecomposition, ichol

from adbooster.contracts import schema
from adbooster.models import preprocessing
from adbooster.pictures import images, matting
from adbooster.pictures.matting import Refined, refine, refine_large
from adbooster.prepare.stages import Segmenter
from adbooster.storage.objects import Root

SOLVE_PX = 600_000
NETWORK_S = 0.01


def refined(image_u8: np.ndarray, probability: np.ndarray, holes: matting.Holes = "sure") -> Refined:
    """The mask of a photo, at the default settings of that time."""
    band_px = max(2, round(max(image_u8.shape[:2]) / 100))
    with mock.patch.object(matting, "_solve", _solve):
        if probability.size > SOLVE_PX:
            return refine_large(image_u8, probability, band_px, SOLVE_PX, holes)
        return refine(image_u8, probability, band_px, holes)


def _solve(image: np.ndarray, trimap: np.ndarray, *_: np.ndarray) -> np.ndarray:
    unknown = trimap == 0.5
    band = max(int(unknown.sum()), 1)
    inner = tuple(matting._span(unknown.any(axis)) for axis in (1, 0))

    def precondition(system) -> CholeskyDecomposition:
        with redirect_stdout(io.StringIO()):
            return ichol(system, max_nnz=100 * band, shifts=[0.0, 1e-4, 1e-3])

    out = trimap.copy()
    solver = {"maxiter": max(1, min(500, 8_000_000 // band))}
    try:
        with np.errstate(all="ignore"):
            out[inner] = pymatting.estimate_alpha_cf(
                image[inner], trimap[inner], preconditioner=precondition, cg_kwargs=solver
            )
    except (ValueError, ZeroDivisionError) as e:
        raise matting._Unsolved(str(e)) from e
    if band > matting.MAX_BAND_PX or not np.isfinite(out).all():
        raise matting._Unsolved("too large, or no number")
    return out


class SleepingNet:
    """In place of U2-Net on a GPU: sleeps for `NETWORK_S` a picture, for measuring the time around it and nothing else.

    What it finds is what is dark or colourful on a white page.
    """

    size_px = (320, 320)

    def maps(self, x_u8: np.ndarray) -> np.ndarray:
        preprocessing.normalize(x_u8, preprocessing.U2NET)
        ends = time.perf_counter() + NETWORK_S * len(x_u8)
        found = (x_u8.min(1) < 225).astype(np.float32)
        time.sleep(max(0.0, ends - time.perf_counter()))
        return found


class SleepingSegmenter(Segmenter):
    """A Segmenter with that network; all else is real."""

    net = SleepingNet()  # pyright: ignore[reportAssignmentType]


class FormerMasker:
    """Decoding, the network (the one above) and former matting in one actor in turn, as it was before they were split."""

    def __init__(self, root: Root):
        self.root, self.net = root, SleepingNet()

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._mask(row) for row in rows.to_pylist()]
        return schema.fill(pa.Table.from_pylist(done), schema.MASKED)

    def _mask(self, row: dict) -> dict:
        photo, _ = images.decode_with_alpha(self.root.read(row["photo_uri"]))
        found = self.net.maps(preprocessing.shrink(photo, preprocessing.U2NET, self.net.size_px)[None])[0]
        mask, how, unsure = refined(photo, matting.upsampled(found, photo.shape[:2]))
        uri = self.root.put(images.encode_mask(mask), "png")
        values = {"mask_uri": uri, "mask_how": how, "mask_unsure_share": unsure} | matting.measure(photo, mask)
        return {n: v for n, v in row.items() if n in schema.FETCHED.names} | values
