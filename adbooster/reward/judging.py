"""What a painter asks of heads: what candidates are chosen by, and which of them people could not use."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adbooster.reward.features import columns, features
from adbooster.reward.heads import Head

Figures = Sequence[Mapping[str, float | None]]
LIKE = 3  # rejected creatives that a verdict names


class Verdict(NamedTuple):
    """Of one candidate the probability that it is unusable, whether it is turned down, and what it resembles."""

    unusable: float
    turned_down: bool
    like_rejected: list[str]  # creatives that people rejected, the nearest first; empty where it passes


class Choice:
    """Candidates by CLIP and a reward together.

    weight  of the reward, 0-1
    """

    def __init__(self, head: Head, weight: float):
        self.head, self.weight = head, weight

    def wanted(
        self, clip_scores: np.ndarray, image_vectors: np.ndarray, text_vector: np.ndarray, figures: Figures
    ) -> tuple[np.ndarray, np.ndarray]:
        """(what they are chosen by, in units of the CLIP score; the learned score, 0-1) of n candidates for one text."""
        texts = np.broadcast_to(text_vector, image_vectors.shape)
        seen = features(image_vectors, texts, columns(figures, self.head.card.figures))
        logits = self.head.logits(seen)
        return self.head.blend(clip_scores, logits, self.weight), self.head.calibration.probabilities(logits)


class UsabilityGate:
    """Turns candidates down from the head's threshold on; without one it turns nothing down."""

    def __init__(self, head: Head):
        self.head, self.threshold = head, head.card.threshold

    def look(self, image_vectors: np.ndarray, scene_vectors: np.ndarray, figures: Figures) -> list[Verdict]:
        """image_vectors of n pictures, scene_vectors of them without their products; unit vectors [n,D]"""
        seen = features(image_vectors, scene_vectors, columns(figures, self.head.card.figures))
        verdicts = []
        for probability, vector in zip(self.head.score(seen).tolist(), image_vectors, strict=True):
            down = self.threshold is not None and probability >= self.threshold
            like = [near["creative_id"] for near in self.head.nearest(vector, LIKE)] if down else []
            verdicts.append(Verdict(probability, down, like))
        return verdicts
