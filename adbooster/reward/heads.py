"""A head on disk and in use: features to a calibrated probability. Files come from others too, and are read strictly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import first_error
from adbooster.reward import features
from adbooster.reward.config import RewardFigures, UsabilityFigures
from adbooster.reward.regression import Calibration, Regression

CARD, ARRAYS = "head.json", "head.safetensors"
MAX_CARD_BYTES, MAX_ARRAYS_BYTES = 16 << 20, 256 << 20
_KNOWN = (*features.REWARD_FIGURES, *features.GATES)
Kind = Literal["reward", "usability"]


class Scale(BaseModel):
    """What a standard deviation is among creatives of one place (of one cohort, where most places have one): of the CLIP score, and of the learned log odds."""

    model_config = ConfigDict(extra="forbid")
    clip_mean: float = Field(allow_inf_nan=False)
    clip_sd: float = Field(gt=0, allow_inf_nan=False)
    logit_mean: float = Field(allow_inf_nan=False)
    logit_sd: float = Field(gt=0, allow_inf_nan=False)


class Card(BaseModel):
    """head.json: what a head is, what it sees, and how it does on products held out."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["adbooster-head-1"] = "adbooster-head-1"
    kind: Kind
    clip_revision: str = Field(pattern="^([0-9a-f]{16})?$")
    """content hash of the CLIP whose vectors it sees"""
    dimensions: int = Field(ge=1, le=8192)
    """of a vector"""
    figures: tuple[str, ...] = Field(max_length=len(_KNOWN))
    """in the order in which it sees them"""
    calibration: Literal["platt", "isotonic"]
    made_of: str = Field(default="", max_length=64)
    """names the examples and settings it was trained on"""
    scale: Scale | None = None
    """of a reward"""
    reward: RewardFigures | None = None
    usability: UsabilityFigures | None = None
    rejected: tuple[str, ...] = Field(default=(), max_length=5000)
    """creatives that people rejected, in the order of their vectors"""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if unknown := sorted(set(self.figures) - set(_KNOWN)):
            raise ValueError(f"sees the unknown figure {unknown[0]!r}; figures are {', '.join(_KNOWN)}")
        if len(set(self.figures)) < len(self.figures):
            raise ValueError("names a figure twice")
        if (self.reward is None or self.scale is None) if self.kind == "reward" else self.usability is None:
            raise ValueError(f"is of the kind {self.kind} and lacks its figures")
        return self

    @property
    def surely_better(self) -> bool:
        """Whether a reward surely orders better than CLIP on products held out."""
        return bool(self.reward and self.reward.surely_better)

    def gains(self) -> str:
        """Of a reward, both gains over CLIP with their 95 % intervals."""
        total = self.reward.total if self.reward else None
        found = {"order (AUC)": total.auc_gain, "log-loss": total.log_loss_gain} if total else {}
        return ", ".join(
            f"{name} {g.mean:+.3g} [{g.low or 0:+.3g}, {g.high or 0:+.3g}]" if g else f"{name} not comparable"
            for name, g in found.items()
        )

    @property
    def why(self) -> str:
        """Why a usability head has no threshold."""
        return self.usability.why if self.usability else ""

    @property
    def threshold(self) -> float | None:
        """Probability of being unusable from which a picture is rejected; null: the head must not be used as a gate."""
        return self.usability.threshold if self.usability else None


@dataclass(frozen=True)
class Head:
    """A trained head; `rejected_vectors` [m,D] are unit vectors of the pictures that `card.rejected` names."""

    card: Card
    regression: Regression
    calibration: Calibration
    rejected_vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Log odds [n] before calibration, of features [n,d] as `features.features` makes them: what candidates are
        ordered by."""
        return self.regression.logits(features)

    def score(self, features: np.ndarray) -> np.ndarray:
        """Calibrated probabilities [n], 0-1: of a click, or of being unusable."""
        return self.calibration.probabilities(self.logits(features))

    def blend(self, clip_scores: np.ndarray, logits: np.ndarray, weight: float) -> np.ndarray:
        """What candidates [n] are chosen by, in units of the CLIP score: (1 - weight) clip + weight learned.

        The learned part is their `logits` brought to the mean and spread of CLIP scores among candidates for one cohort,
        so at a weight of 0.5 a standard deviation of either counts the same; a candidate's depends on no other's.
        """
        if (scale := self.card.scale) is None:
            raise ConfigError(f"a head of the kind {self.card.kind} orders no candidates; give one of the kind reward")
        learned = (logits - scale.logit_mean) / scale.logit_sd
        return (1 - weight) * clip_scores + weight * (scale.clip_mean + scale.clip_sd * learned)

    def nearest(self, image_vector: np.ndarray, most: int = 3) -> list[dict]:
        """Rejected creatives whose pictures [D] resembles most: creative_id and cosine, the nearest first."""
        if not len(self.rejected_vectors):
            return []
        cosines = self.rejected_vectors @ image_vector
        order = np.argsort(-cosines, kind="stable")[:most]
        return [{"creative_id": self.card.rejected[i], "cosine": round(float(cosines[i]), 4)} for i in order]

    def files(self) -> dict[str, bytes]:
        """The files of its folder by name, the card last."""
        r, c = self.regression, self.calibration
        arrays = {"mean": r.mean, "scale": r.scale, "projection": r.projection, "spread": r.spread}
        arrays |= {"weights": r.weights, "intercept": np.array([r.intercept])}
        arrays |= {"calibration_x": c.x, "calibration_y": c.y}
        if self.card.kind == "usability":
            arrays["rejected"] = self.rejected_vectors
        content = {name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()}
        return {ARRAYS: safetensors.numpy.save(content), CARD: self.card.model_dump_json(indent=1).encode()}

    def save(self, path: Path) -> None:
        """Write its files into a folder."""
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (path / name).write_bytes(content)

    @classmethod
    def load(cls, path: Path, kind: Kind | Literal[""] = "", clip_revision: str = "") -> "Head":
        """The head of a folder.

        kind, clip_revision  what it has to be; empty: anything
        raises               ConfigError for another kind, one trained on another CLIP, and files that are not a head's
        """
        card = read_card(path, kind, clip_revision)
        known = _Arrays(path, card)
        k, v, d = known.shape("projection")[0], features.VECTORS * card.dimensions, len(names(card))
        mean, scale = known.array("mean", (d,)), known.array("scale", (d,), above=0.0)
        projection, spread = known.array("projection", (k, v)), known.array("spread", (k,), above=0.0)
        weights, intercept = known.array("weights", (k + d - v,)), known.array("intercept", (1,))
        n = 2 if card.calibration == "platt" else known.shape("calibration_x")[0]
        x = known.array("calibration_x", (n,))
        y = known.array("calibration_y", (0,) if card.calibration == "platt" else (n,))
        if card.calibration == "isotonic" and not (n and (np.diff(x) >= 0).all() and ((y >= 0) & (y <= 1)).all()):
            raise ConfigError(f"the calibration of the head {path} is none; its points have to rise and be shares")
        rejected = np.zeros((0, 0))
        if card.kind == "usability":
            rejected = known.array("rejected", (len(card.rejected), card.dimensions if card.rejected else 0))
        regression = Regression(mean, scale, projection, spread, weights, float(intercept[0]))
        return cls(card, regression, Calibration(card.calibration, x, y), rejected)


def names(card: Card) -> list[str]:
    """What each column of a head's features is."""
    parts = ("image", "other", "product")
    vectors = [f"{part}_{i}" for part in parts for i in range(card.dimensions)]
    return [*vectors, features.COSINE, *card.figures]


def read_card(path: Path, kind: Kind | Literal[""] = "", clip_revision: str = "") -> Card:
    """The card of a head's folder; arguments and errors as for `Head.load`."""
    file = path / CARD
    if not file.is_file():
        raise ConfigError(f"there is no head at {path}; it should be a folder with {CARD} and {ARRAYS}")
    if (size := file.stat().st_size) > MAX_CARD_BYTES:
        raise ConfigError(f"{file} has {size} bytes; a head's card has {MAX_CARD_BYTES} at most")
    try:
        card = Card.model_validate(json.loads(file.read_bytes()))
    except ValidationError as e:
        raise ConfigError(f"the head {path} cannot be used: {first_error(e)}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"the head {path} cannot be used: {CARD} is not JSON ({str(e)[:100]})") from e
    if kind and card.kind != kind:
        raise ConfigError(f"the head {path} is of the kind {card.kind}; a {kind} head is needed here")
    if clip_revision and card.clip_revision != clip_revision:
        raise ConfigError(
            f"the {card.kind} head {path} was trained on vectors of the CLIP {card.clip_revision or '(not said)'}, and "
            f"rank_model is {clip_revision}; train one with this rank_model"
        )
    return card


class _Arrays:
    """The arrays of a head's folder, each checked when it is asked for."""

    def __init__(self, path: Path, card: Card):
        self.path, file = path, path / ARRAYS
        if not file.is_file() or file.stat().st_size > MAX_ARRAYS_BYTES:
            raise ConfigError(f"the head {path} has no {ARRAYS} of at most {MAX_ARRAYS_BYTES} bytes")
        try:
            self.known = safetensors.numpy.load(file.read_bytes())
        except (SafetensorError, ValueError, KeyError) as e:
            raise ConfigError(f"the head {path} cannot be used: {ARRAYS} cannot be read ({str(e)[:100]})") from e
        wanted = {"mean", "scale", "projection", "spread", "weights", "intercept", "calibration_x", "calibration_y"}
        wanted |= {"rejected"} if card.kind == "usability" else set()
        if differ := sorted(wanted ^ set(self.known)):
            raise ConfigError(f"the head {path} cannot be used: {ARRAYS} lacks or should not have {differ[0]!r}")

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self.known[name].shape
        return shape or (0,)

    def array(self, name: str, shape: tuple[int, ...], above: float | None = None) -> np.ndarray:
        found = self.known[name]
        if found.shape != shape or found.dtype != np.float64:
            raise ConfigError(
                f"the head {self.path} cannot be used: {name} is {found.dtype}{list(found.shape)} and should be "
                f"float64{list(shape)}"
            )
        if not np.isfinite(found).all() or (above is not None and (found <= above).any()):
            raise ConfigError(f"the head {self.path} cannot be used: {name} holds a value that is none")
        return found
