"""Settings of the models that mask and caption photos."""

from typing import Literal

from pydantic import Field, PositiveFloat

from adbooster.contracts.settings import Config


class Masking(Config):
    """How masks are made."""

    solve_px: int = Field(default=100_000, ge=10_000)
    """Pixels above which matting is solved on a smaller picture and brought back along its edges."""
    refine_px: int | None = Field(default=None, ge=1)
    """Half-width of the band that is refined; null: 1 % of the longer side."""
    holes: Literal["never", "sure", "all"] = "sure"
    """Where a plain page seen through the product (loops, handles, spokes) is cut out: `sure` leaves what the network is
    certain of, as a print of the page's colour looks the same; `all` cuts that out too; `never` leaves it to the network.
    What stays although it has the page's colour is `mask_unsure_share`."""


class MaskNetwork(Config):
    """How a mask model's network is fed and read, over what the file beside it says; null: as that says, without one as
    U2-Net is."""

    input_px: int | None = Field(default=None, ge=16, le=8192)
    """Side of the square that pictures are scaled to; a graph of fixed size knows it itself."""
    scale: Literal["maximum"] | PositiveFloat | None = None
    """What pixel values (0-255) are divided by: a number such as 255, or `maximum`, the picture's own largest."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from the scaled red, green and blue."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """What they are divided by then."""
    output: int | str | None = Field(default=None, union_mode="left_to_right")
    """Index (-1: the last) or name of the output with the product's map."""
    activation: Literal["none", "sigmoid"] | None = None
    """What makes probabilities of that output: sigmoid for logits; none: it holds them."""


class Captions(Config):
    """How captions are generated."""

    prefix: str = ""
    """Words that every caption goes on from, such as "a photo of"; they are not kept in it."""
    max_new_tokens: int = Field(default=24, ge=1, le=200)
    """Longest caption, in tokens."""
    no_repeat_ngram_size: int = Field(default=3, ge=0)
    """Groups of so many tokens never come twice; 0: they may."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, words already in the caption become less likely."""
