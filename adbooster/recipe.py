"""What decides the pixels besides product and cohort, and the names that follow from it."""

import hashlib
import json

from pydantic import Field

from adbooster.settings import Config


class Recipe(Config):
    """All that decides the pixels besides product and cohort. Changing any of it repaints."""

    candidates: int = Field(4, ge=1, le=64)
    """Paintings a request, K."""
    num_inference_steps: int = Field(20, ge=1, le=1000)
    """Sampler steps a painting."""
    guidance_scale: float = Field(5.0, ge=1.0)
    """Classifier-free guidance; 1 is none and half the cost."""
    size_px: int = Field(512, ge=64, le=4096)
    """Side of the published picture."""
    paint_px: int = Field(512, ge=64, le=2048)
    """Side at which the model paints; the scene is upscaled from there, the product never."""
    product_scale: tuple[float, float] = (0.4, 0.6)
    """Range of the product's longer side as a share of the picture's."""
    ground_line: tuple[float, float] = (0.8, 0.93)
    """Range of the product's lower edge as a share of the picture's height."""
    seed: int = 0
    """Another seed, other paintings."""


def digest(*parts: str) -> str:
    """SHA-256 hex of the parts, each kept apart from the next."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def recipe_id(recipe: Recipe, weights_revision: str, rank_revision: str) -> str:
    """16 hex digits that name the recipe under one set of weights and one ranking model."""
    return digest(json.dumps(recipe.model_dump(mode="json"), sort_keys=True), weights_revision, rank_revision)[:16]


def seed_of(request_id: str, candidate: int) -> int:
    """The candidate's seed, 0 <= seed < 2^63, from content alone."""
    return int(digest(request_id, str(candidate))[:16], 16) >> 1
