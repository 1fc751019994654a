"""What a picture must be to be used, and what is asked of the models that look at it."""

from pydantic import Field

from adbooster.settings import Config


class Rules(Config):
    """What a picture must be to be used. Changing one judges again, without decoding a picture."""

    min_side_px: int = Field(200, ge=16)
    """A photo with a shorter side is rejected."""
    max_mb: float = Field(16, gt=0)
    """A file over this is not read."""
    min_area_share: float = Field(0.01, ge=0, le=1)
    """A mask with a smaller share of white is no product."""
    max_area_share: float = Field(0.9, ge=0, le=1)
    """A mask with a larger share of white is no cut-out."""
    max_border_share: float = Field(0.02, ge=0, le=1)
    """Share of the border that the product of a main photo may touch; more means it is cut off."""
    max_pieces: int = Field(4, ge=1)
    """Parts that the product of a main photo may fall into (a pair of shoes has two); specks do not count."""
    plain_deviation: float = Field(12, ge=0)
    """Standard deviation (0-255) outside the mask below which a background is plain, not a scene."""


class Masking(Config):
    """How masks are made."""

    solve_px: int = Field(600_000, ge=10_000)
    """Pixels above which matting is solved on a smaller picture and brought back along its edges."""
    refine_px: int | None = Field(None, ge=1)
    """Half-width of the band that is refined; null: 1 % of the longer side."""


class Captions(Config):
    """What captions are asked for."""

    prefix: str = ""
    """Words that every caption goes on from, such as "a photo of"; they are not kept in it."""
    max_new_tokens: int = Field(24, ge=1, le=200)
    """Longest caption, in tokens."""
    no_repeat_ngram_size: int = Field(3, ge=0)
    """Groups of so many tokens never come twice; 0: they may."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, words already said become less likely."""
