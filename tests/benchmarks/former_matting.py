"""Masks as they were made before matting had a prior: the yardstick of benchmarks, called as it was then."""

import io
from contextlib import redirect_stdout
from unittest import mock

import numpy as np
import pymatting
from pymatting.preconditioner.ichol import CholeskyDecomposition, ichol

from adbooster.pictures import matting
from adbooster.pictures.matting import Refined, refine, refine_large

SOLVE_PX = 600_000


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
