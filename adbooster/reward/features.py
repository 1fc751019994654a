"""What a head sees of a candidate: vectors of the CLIP that ranks, and figures that the painter has of it anyway."""

from collections.abc import Iterable, Mapping

import numpy as np

LIGHT = ("colour_distance", "light_opposition", "ground_line", "contact_share", "clash")
GATES = ("expansion_share", "copy_similarity", "people", "text")
LAYOUT = ("product_width", "product_height", "product_left", "product_foot")
REWARD_FIGURES = (*LAYOUT, *LIGHT)  # of every candidate, before any gate has looked at it
USABILITY_FIGURES = (*LAYOUT, *LIGHT, *GATES)
COSINE = "cosine"
VECTORS = 3  # kinds of vectors: the picture's, the other one, and their product


def features(image_vectors: np.ndarray, other_vectors: np.ndarray, figures: Mapping[str, np.ndarray]) -> np.ndarray:
    """A head's input, float64 [n, 3 D + 1 + figures]: both vectors, their elementwise product, their cosine, the figures.

    image_vectors  unit vectors [n,D] of the pictures
    other_vectors  unit vectors [n,D]: a reward sees the cohort's text, a usability head the picture without its product
    figures        [n] each, NaN where it is not known, in the order in which the head names them
    """
    product = image_vectors * other_vectors
    columns = [np.asarray(v, np.float64)[:, None] for v in figures.values()]
    return np.concatenate(
        [image_vectors, other_vectors, product, product.sum(axis=1, keepdims=True), *columns], axis=1, dtype=np.float64
    )


def figures_of(
    layout: Mapping[str, int],
    size: tuple[int, int],
    light: Mapping[str, float | None],
    gates: Mapping[str, float | None] | None = None,
) -> dict[str, float | None]:
    """The figures of a candidate by name: the product's box as shares of its picture, and what was measured of it.

    layout, light, gates  as in tables/creatives; size: (width, height) of the picture that the layout is in
    """
    width_px, height_px = size
    measured = {**light, **(gates or {})}
    return {name: measured.get(name) for name in (*LIGHT, *GATES)} | {
        "product_width": layout["width_px"] / width_px,
        "product_height": layout["height_px"] / height_px,
        "product_left": layout["x_px"] / width_px,
        "product_foot": (layout["y_px"] + layout["height_px"]) / height_px,
    }


def columns(rows: Iterable[Mapping[str, float | None]], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Figures of rows as arrays [n]; what a row lacks is NaN."""
    known = list(rows)
    return {
        name: np.array([np.nan if (v := row.get(name)) is None else float(v) for row in known], np.float64)
        for name in names
    }
