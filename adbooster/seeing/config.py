"""Settings of what a vision model looks for, and the counts of a run."""

from typing import Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

from adbooster.prompts.config import Endpoint

Word = Literal["floating", "wrong_scale", "extra_product", "people", "text", "other_scene", "tasteless"]
WORDS: tuple[Word, ...] = get_args(Word)


def reject_word(word: str) -> str:
    """What a creative is rejected for where the answer to a question is yes, and the column of tables/sightings."""
    return f"seen_{word}"


class Seeing(Endpoint):
    """A vision model behind an OpenAI-compatible endpoint, what it is asked, and what follows."""

    max_px: int = Field(default=512, ge=64, le=4096)
    """Longest side of the picture that is sent, as JPEG; larger ones are scaled down."""
    questions: tuple[Word, ...] = Field(default=WORDS, min_length=1)
    """What is asked of each picture, in one call; other questions are asked of all pictures anew."""
    reject: tuple[Word, ...] = tuple(word for word in WORDS if word != "tasteless")
    """Of the questions those whose yes rejects a creative; people reject none whose cohort's text asks for people."""
    max_calls: int = Field(default=10_000, ge=0)
    """Pictures a run may send; those beyond it are not looked at. Further tries of a call do not count."""
    max_failures: int = Field(default=20, ge=1)
    """Calls in a row without a usable answer, after which the endpoint is left alone for the rest of the run."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """Sampling temperature; null: it is not sent, for models that take none."""
    max_tokens: int | None = Field(default=400, ge=50)
    """Most tokens of an answer; null: it is not sent."""

    @model_validator(mode="after")
    def _rejects_what_it_asks(self) -> Self:
        if unasked := [word for word in self.reject if word not in self.questions]:
            raise ValueError(f"reject names {unasked[0]!r}, which is none of the questions {', '.join(self.questions)}")
        return self


class SeeingFigures(BaseModel):
    """What a vision model looked at in a run; counts are distinct pictures and questions unless stated otherwise."""

    looked: int = 0
    """With an answer, now or before."""
    known: int = 0
    """Of these, those that were answered before this run asked."""
    calls: int = 0
    """Sent to the endpoint."""
    not_looked: dict[str, int] = {}
    """Without an answer, by reason: they are published, or counted, as if nobody had been asked."""
    refused: dict[str, int] = {}
    """Creatives that were not published because of an answer, by reject word."""
    repainted: int = 0
    """Requests painted again because of it."""
