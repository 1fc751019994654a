"""A gate learned from verdicts (after Reliable_AD, arXiv 2408.00418): the probability that people would reject a picture."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.evaluation import Interval
from adbooster.reward.config import UsabilityFigures, UsabilityTraining
from adbooster.reward.features import COSINE, VECTORS, features
from adbooster.reward.fitting import Counts, calibrate, calibrated, fit, held_out
from adbooster.reward.heads import Card, Head
from adbooster.reward.resampling import Order, bins, wilson

STRICTER = 0.5  # part of what is missing to a precision of 1, by which more is sought than is asked
LEAST_FLAGGED = 10  # pictures above a threshold, from which its precision says anything


@dataclass(frozen=True)
class Verdicts:
    """Creatives that people judged; all arrays have n rows.

    image_vectors, scene_vectors  unit vectors [n,D] of the picture, and of it without its product
    figures                       what `features.USABILITY_FIGURES` names, [n] each, NaN where it is not known
    unusable                      share of verdicts that rejected it, 0-1
    weights                       verdicts as which it counts
    groups, cohorts               ids of products and of cohorts, which are held out as a whole, both at the same time: a gate
                                  that has learned which scenes people rejected would be less sure in a scene it has not seen
    creative_ids                  names
    """

    image_vectors: np.ndarray
    scene_vectors: np.ndarray
    figures: Mapping[str, np.ndarray]
    unusable: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    cohorts: np.ndarray
    creative_ids: np.ndarray


def train_usability(
    verdicts: Verdicts, settings: UsabilityTraining | None = None, clip_revision: str = "", made_of: str = ""
) -> tuple[Head, UsabilityFigures]:
    """A head whose score is the probability that a picture is unusable, and the threshold from which it may reject one.

    The threshold is the lowest from which a little more than `precision` of what it rejects (half way to all) is rejected by
    people too, on held-out predictions; the precision that is said is of thresholds found on other products and cohorts
    than those they are applied to, which is a little less than is sought. Where it is below `precision` there is no threshold.
    raises  ConfigError for too few rejected or other creatives
    """
    settings = settings or UsabilityTraining()
    bad = verdicts.unusable > 0.5
    rejected, others = int(bad.sum()), int((~bad).sum())
    if min(rejected, others) < settings.least_rejected:
        raise ConfigError(
            f"people rejected {rejected} creatives and kept {others}; the usability gate is trained on "
            f"{settings.least_rejected} of each at least"
        )
    x = features(verdicts.image_vectors, verdicts.scene_vectors, verdicts.figures)
    dimensions = verdicts.image_vectors.shape[1]
    shape = (VECTORS * dimensions, VECTORS, settings.components)
    positive, negative = (verdicts.weights * share for share in (verdicts.unusable, 1 - verdicts.unusable))
    counts = Counts(positive, negative, verdicts.groups, np.zeros(len(bad), bool), other=verdicts.cohorts)
    logits, parts = held_out(x, counts, *shape, settings.folds)
    probabilities = calibrated(settings.calibration, logits, counts, parts)
    regression = fit(x, counts, *shape)
    named = [COSINE, *verdicts.figures]
    calibration = calibrate(settings.calibration, logits, counts)
    ordered = calibration.probabilities(logits)
    sought = settings.precision + STRICTER * (1 - settings.precision)
    flagged = np.zeros(len(bad), bool)
    for here, others in parts.each():
        found = threshold(ordered[others], bad[others], sought)
        flagged[here] = found is not None and ordered[here] >= found
    found = threshold(ordered, bad, sought)
    precision = wilson(float((flagged & bad).sum()), float(flagged.sum())) if flagged.any() else None
    why = _why_not(found, precision, int(flagged.sum()), settings)
    figures = UsabilityFigures(
        creatives=len(bad),
        products=len(np.unique(verdicts.groups)),
        rejected=rejected,
        threshold=None if why else found,
        why=why,
        precision=precision,
        recall=wilson(float((flagged & bad).sum()), float(bad.sum())),
        auc=Order(logits, np.zeros(len(bad))).auc(positive, negative),
        calibration=bins(probabilities, positive, negative),
        weights=dict(zip(named, regression.weights[-len(named) :].tolist(), strict=True)),
    )
    kept = np.flatnonzero(bad)
    kept = kept[np.argsort(-probabilities[kept], kind="stable")[: settings.examples]]
    card = Card(
        kind="usability",
        clip_revision=clip_revision,
        dimensions=dimensions,
        figures=tuple(verdicts.figures),
        calibration=settings.calibration,
        made_of=made_of,
        usability=figures,
        rejected=tuple(str(name) for name in verdicts.creative_ids[kept]),
    )
    return Head(card, regression, calibration, np.asarray(verdicts.image_vectors[kept], np.float64)), figures


def threshold(probabilities: np.ndarray, bad: np.ndarray, precision: float) -> float | None:
    """The lowest probability from which at least `precision` of the rows [n] are bad; null: there is none."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    share = np.cumsum(bad[order]) / np.arange(1, len(order) + 1)
    last_of_equal = np.append(ranked[1:] != ranked[:-1], True)
    fits = last_of_equal & (share >= precision) & (np.arange(1, len(order) + 1) >= LEAST_FLAGGED)
    return float(ranked[np.flatnonzero(fits)[-1]]) if fits.any() else None


def _why_not(found: float | None, precision: Interval | None, flagged: int, settings: UsabilityTraining) -> str:
    if found is None or precision is None:
        return f"at no threshold are {settings.precision:.0%} of the rejected pictures ones that people rejected"
    if precision.mean < settings.precision:
        return (
            f"on products and cohorts held out {precision.mean:.0%} of what it rejects was rejected by people; "
            f"{settings.precision:.0%} is asked"
        )
    if flagged < LEAST_FLAGGED:
        return f"on products and cohorts held out it rejects {flagged} pictures; how right it is takes {LEAST_FLAGGED} to say"
    return ""
