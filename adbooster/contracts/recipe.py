"""What decides the pixels besides product and cohort, and the names that follow from it."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field

from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Config, Uri

LOSSLESS = ("webp_lossless", "png")


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError("should be two shares of 0 to 1, the lower first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


class Stand(Config):
    """How a product stands in a picture; a candidate's place is drawn from these ranges."""

    product_scale: Range
    """The product's longer side as a share of the picture's shorter side; it is scaled down or 1:1, never up."""
    ground_line: Range
    """The product's lower edge as a share of the picture's height."""
    anchor_x: Range = (0.3, 0.7)
    """Where in the free width it stands: 0 is left, 1 right."""


class StandRule(Stand):
    """A stand for the products of a category, in one placement or in all."""

    category: str = ""
    """Start of the feed's category, any case; empty: every product."""
    placement: str = ""
    """Name of a placement; empty: all."""


class Placement(Stand):
    """One size that ads are shown in."""

    width_px: int
    height_px: int


@cache
def placements() -> dict[str, Placement]:
    """The sizes of placements.yaml by name."""
    entries = yaml.safe_load((Path(__file__).parent / "placements.yaml").read_text())
    return {name: Placement.model_validate(values) for name, values in entries.items()}


def _known(name: str) -> str:
    if name not in placements():
        raise ValueError(f"is not a placement; the placements are {', '.join(placements())}")
    return name


class Gates(Config):
    """What a painting must pass to be a creative. A null threshold switches its gate off."""

    max_expansion_share: float | None = Field(default=None, ge=0)
    """Share of its own area by which the product may seem to have grown (union form); needs `mask_model`."""
    max_copy_similarity: float | None = Field(default=None, ge=-1, le=1)
    """Cosine (rank CLIP) between the product and another salient thing beside it above which that is a second copy;
    needs `mask_model`."""
    max_people: float | None = Field(default=None, ge=0, le=1)
    """Probability of people in the scene, unless the cohort's text asks for them (zero-shot, rank CLIP)."""
    max_text: float | None = Field(default=None, ge=0, le=1)
    """Probability of writing, logos or watermarks in the scene (zero-shot, rank CLIP)."""
    min_background_distance: int | None = Field(default=None, ge=0, le=64)
    """Bits (of 64, perceptual hash, product masked out) by which a scene must differ from those of other winners of
    its cohort and of its product; nearer ones that CLIP finds alike as well are duplicates."""
    max_background_similarity: float = Field(default=0.95, ge=-1, le=1)
    """Cosine of two scenes' CLIP vectors above which a near perceptual hash makes them duplicates."""
    min_contact_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the product's lowest edge that must lie on the painted ground, where a ground is found."""
    max_light_opposition: float | None = Field(default=None, ge=0, le=1)
    """How surely (0-1) light may come from opposite sides on the product and in the scene."""


class Harmonise(Config):
    """How far the scene is drawn toward the product; the product is never changed. All is off unless set."""

    exposure_stops: float = Field(default=0, ge=0, le=1)
    """The most, in stops, by which the scene gets lighter or darker; 0 is off."""
    white_balance: float = Field(default=0, ge=0, le=0.5)
    """The most by which a channel of the scene changes, as a share of its light; 0 is off."""
    grain: bool = False
    """Noise of the product's photo in the scene too; lossless files grow by it."""
    reflection: float = Field(default=0, ge=0, le=0.6)
    """Strength of the product's mirror image on a glossy ground; 0 is off."""


class Halving(Config):
    """Weaker candidates stop early: they are compared by previews, halfway, and their slots go to other requests'."""

    at: float = Field(default=0, ge=0, lt=1)
    """Share of the steps after which candidates are compared; 0 is off."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of a request's candidates that go on, rounded up."""
    preview: Literal["vae", "half", "linear"] = "vae"
    """What they are compared by: the VAE; the VAE on latents of half the side, a quarter of its time; or one pixel a latent
    by a linear map that is fitted to the VAE, for VAEs that are nearly linear (the embedded one is not)."""


class Adapter(Config):
    """A LoRA, or a few-step adapter of that form (LCM, Hyper), that is added to the weights."""

    uri: Uri
    """A .safetensors file."""
    scale: float = 1.0
    """Its strength."""


class Recipe(Config):
    """All that decides the pixels besides product and cohort. Changing any of it repaints."""

    candidates: int = Field(default=4, ge=1, le=64)
    """Paintings a request and round, K."""
    keep: int = Field(default=1, ge=1, le=64)
    """Creatives kept a request, at most `candidates`."""
    diversity: float = Field(default=0.3, ge=0, le=1)
    """Weight of being unlike the creatives already chosen for the request (maximal marginal relevance); 0 is score alone."""
    max_rounds: int = Field(default=2, ge=1, le=10)
    """Times a request is painted, with new seeds, while gates reject what is painted."""
    gates: Gates = Gates()
    """What a painting must pass."""
    num_inference_steps: int = Field(default=20, ge=1, le=1000)
    """Sampler steps a painting."""
    guidance_scale: float = Field(default=5.0, ge=1.0)
    """Classifier-free guidance; 1 is none and half the cost."""
    guidance_interval: Range = (0.0, 1.0)
    """Share of the steps between which guidance is on; outside it a step costs half."""
    halving: Halving = Halving()
    """Which candidates are painted to the end."""
    cache_every: int = Field(default=1, ge=1, le=10)
    """Steps from one whole evaluation of the UNet to the next; those between run its outer layers alone, on deep features
    of the last whole one. 1 is off."""
    scheduler: str = Field(default="", pattern="^[A-Za-z0-9]*$")
    """Name of a diffusers scheduler class; empty: the one that came with the weights."""
    scheduler_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Settings of the scheduler that replace those of the weights."""
    placements: tuple[Annotated[str, AfterValidator(_known)], ...] = Field(default=("square",), min_length=1)
    """Sizes to paint: square, landscape, portrait, story (placements.yaml)."""
    size_px: int = Field(default=0, ge=0, le=4096)
    """Longer side of the published picture; 0: the placement's own pixels."""
    paint_px: int = Field(default=512, ge=64, le=2048)
    """Side of the square whose area the model paints; the scene is upscaled from there, the product never."""
    layouts: int = Field(default=2, ge=1, le=64)
    """Places a product stands in, in turn for the candidates; each costs one VAE pass for all cohorts together."""
    stands: tuple[StandRule, ...] = ()
    """How products of a category stand; the first that fits, else the placement's own."""
    shadow: Literal["none", "contact", "grounded"] = "none"
    """contact: a soft ellipse under the product where the model painted none; grounded: contact, occlusion and cast
    shadow from the product's outline and the scene's light."""
    harmonise: Harmonise = Harmonise()
    """The scene's light, colour and grain as the product's."""
    clash_weight: float = Field(default=0, ge=0, le=1)
    """What a candidate's score loses in the choice for a scene that clashes with the product at its worst: light from
    the opposite side, a product above the ground, a horizon that touches its top."""
    image_format: Literal["webp_lossless", "png", "webp", "jpeg"] = "webp_lossless"
    """webp and jpeg are lossy: the product's PSNR is recorded with each file."""
    quality: int = Field(default=90, ge=1, le=100)
    """Quality of webp and jpeg."""
    seed: int = 0
    """Another seed, other paintings."""

    def stand(self, category: str, placement: str) -> Stand:
        """How a product of this category stands in this placement."""
        for rule in self.stands:
            if category.lower().startswith(rule.category.lower()) and rule.placement in ("", placement):
                return rule
        return placements()[placement]

    def size(self, placement: str) -> tuple[int, int]:
        """(width, height) of the published picture in pixels."""
        p = placements()[placement]
        factor = self.size_px / max(p.width_px, p.height_px) if self.size_px else 1
        return round(p.width_px * factor), round(p.height_px * factor)

    def paint_size(self, placement: str) -> tuple[int, int]:
        """(width, height) that the model paints: the placement's ratio, about paint_px^2 pixels, multiples of 8."""
        p = placements()[placement]
        if p.width_px == p.height_px:
            return self.paint_px, self.paint_px
        wide = (p.width_px / p.height_px) ** 0.5
        return round(self.paint_px * wide / 8) * 8, round(self.paint_px / wide / 8) * 8


# Settings that recipes of earlier versions lack: where they have their defaults they are no part of the name.
_YOUNGER = {
    "recipe": ("harmonise", "clash_weight", "halving", "cache_every"),
    "gates": ("min_contact_share", "max_light_opposition"),
}


def recipe_id(recipe: Recipe, revisions: Iterable[str]) -> str:
    """16 hex digits that name the recipe under the revisions of all models that decide (weights, adapters, rank...)."""
    facts = recipe.model_dump(mode="json")
    for part, plain, names in (
        (facts, Recipe(), _YOUNGER["recipe"]),
        (facts["gates"], Gates(), _YOUNGER["gates"]),
    ):
        for name in names:
            if part[name] == plain.model_dump(mode="json")[name]:
                del part[name]
    return digest(json.dumps(facts, sort_keys=True), *revisions)[:16]
