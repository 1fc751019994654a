"""A reward from what people did: aggregated clicks and impressions, and verdicts, to a head and what is surely better of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from adbooster.contracts.errors import ConfigError
from adbooster.reward import off_policy
from adbooster.reward.config import Comparison, RewardFigures, RewardTraining, Value
from adbooster.reward.features import COSINE, VECTORS, features
from adbooster.reward.fitting import Counts, Parts, calibrate, calibrated, fit, held_out, relative_losses
from adbooster.reward.heads import Card, Head, Scale
from adbooster.reward.regression import Regression
from adbooster.reward.resampling import Clusters, Order, bins

LEAST_SHARE = 1e-6
_STEPS = 20  # in which weights and variance settle


@dataclass(frozen=True)
class Examples:
    """Creatives with what people did; all arrays have n rows. A creative may have several rows, a day each.

    image_vectors, text_vectors  unit vectors [n,D] of picture and cohort text by the CLIP that ranks
    figures                      what `features.REWARD_FIGURES` names, [n] each, NaN where it is not known
    impressions, clicks          counts, discounted where the caller wishes; of a mark 0
    propensity                   probability with which the creative was shown among its place's variants; NaN: not known
    groups                       product ids, which are held out as a whole
    families, cohorts            of each row; scores are compared among rows of one cohort (empty: of one family)
    clip_scores                  cosines of picture and text, as ranked by
    approved                     of a row without impressions, 1 approved, 0 rejected, NaN: neither; empty: there are none
    places, variants             names of the place (product, cohort, placement) and of the creative; empty: not known, and
                                 nothing is said off-policy
    """

    image_vectors: np.ndarray
    text_vectors: np.ndarray
    figures: Mapping[str, np.ndarray]
    impressions: np.ndarray
    clicks: np.ndarray
    propensity: np.ndarray
    groups: np.ndarray
    families: np.ndarray
    clip_scores: np.ndarray
    cohorts: np.ndarray = field(default_factory=lambda: np.array([], str))
    approved: np.ndarray = field(default_factory=lambda: np.array([], float))
    places: np.ndarray = field(default_factory=lambda: np.array([], str))
    variants: np.ndarray = field(default_factory=lambda: np.array([], str))

    @property
    def strata(self) -> np.ndarray:
        return self.cohorts if len(self.cohorts) else self.families

    @property
    def units(self) -> np.ndarray:
        """What pictures are compared within: places, where most impressions are of places with several variants; else strata.

        Products and cohorts that people click on more whatever they are shown say nothing of pictures then.
        """
        if not len(self.places) or not len(self.variants) or not self.impressions.sum():
            return self.strata
        place = np.unique(self.places.astype(str), return_inverse=True)[1]
        variant = np.unique(self.variants.astype(str), return_inverse=True)[1]
        shown = self.impressions > 0
        pairs = np.unique(np.stack([place[shown], variant[shown]]), axis=1)
        several = np.bincount(pairs[0], minlength=int(place.max()) + 1) > 1
        return self.places if self.impressions[several[place]].sum() > self.impressions.sum() / 2 else self.strata


def train_reward(
    examples: Examples, settings: RewardTraining | None = None, clip_revision: str = "", made_of: str = ""
) -> tuple[Head, RewardFigures]:
    """A head whose score is the probability of a click, and how it does on products that it has not seen.

    Impressions count 1 / propensity (at most `max_weight`), and the less the more there are of one creative; a verdict
    counts as `mark_weight` impressions with a base rate of its own, and is no part of the calibration where there are clicks.
    raises  ConfigError for counts that cannot be, and too few products or clicks
    """
    settings = settings or RewardTraining()
    _check(examples)
    shown, positive, negative = _weighed(examples, settings)
    used = positive + negative > 0
    if (n := len(np.unique(examples.groups[used]))) < settings.least_products:
        raise ConfigError(
            f"clicks and marks are of {n} products; a reward is trained on {settings.least_products} at least"
        )
    x = features(examples.image_vectors, examples.text_vectors, examples.figures)
    dimensions = examples.image_vectors.shape[1]
    shape = (VECTORS * dimensions, VECTORS, settings.components)
    # Verdicts are compared within cohorts: most places have one alone.
    within = examples.units
    units = np.where(shown, _joined("shown", within), _joined("judged", examples.strata))
    counts = Counts(positive, negative, examples.groups, ~shown, np.unique(units, return_inverse=True)[1]).at(used)
    # Learned and compared with CLIP by what is known of each creative; probabilities are those of every impression.
    known = _information(examples, within, shown)[used]
    weighed = replace(counts, positive=counts.positive * known, negative=counts.negative * known)
    logits, parts = held_out(x[used], weighed, *shape, settings.folds)
    regression = fit(x[used], weighed, *shape)
    judged = shown[used] if shown[used].any() else np.ones(int(used.sum()), bool)
    at = np.flatnonzero(used)[judged]
    seen = _HeldOut(examples, at, counts.at(judged), weighed.at(judged), logits[judged], parts.at(judged), settings)
    figures = seen.figures(_weights(regression, examples, dimensions), int((used & ~shown).sum()))
    card = Card(
        kind="reward",
        clip_revision=clip_revision,
        dimensions=dimensions,
        figures=tuple(examples.figures),
        calibration=settings.calibration,
        made_of=made_of,
        scale=_scale(examples.clip_scores[at], logits[judged], within[at]),
        reward=figures,
    )
    calibration = calibrate(settings.calibration, logits[judged], counts.at(judged))
    return Head(card, regression, calibration), figures


def _joined(kind: str, names: np.ndarray) -> np.ndarray:
    return np.char.add(f"{kind} ", names.astype(str))


def _check(examples: Examples) -> None:
    n = len(examples.clip_scores)
    for name, values in vars(examples).items():
        arrays = values.values() if name == "figures" else [values]
        if any(len(a) not in (n, 0 if name in ("cohorts", "approved", "places", "variants") else n) for a in arrays):
            raise ConfigError(f"the examples' {name} have another length than their {n} CLIP scores")
    for name in ("image_vectors", "text_vectors", "clip_scores", "impressions", "clicks"):
        if not np.isfinite(getattr(examples, name)).all():
            raise ConfigError(f"the examples' {name} hold a value that is no number")
    if (examples.clicks < 0).any() or (examples.clicks > examples.impressions).any():
        worst = int(np.argmax((examples.clicks < 0) | (examples.clicks > examples.impressions)))
        raise ConfigError(
            f"an example has {examples.clicks[worst]:g} clicks of {examples.impressions[worst]:g} impressions"
        )
    known = examples.propensity[np.isfinite(examples.propensity)]
    if ((known <= 0) | (known > 1)).any():
        raise ConfigError(f"a propensity of {known[(known <= 0) | (known > 1)][0]:g} is no probability above 0")


def _weighed(examples: Examples, settings: RewardTraining) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows that were shown [n], positive weights [n], negative weights [n]); clicks count where there are enough."""
    weights = np.minimum(1 / np.nan_to_num(examples.propensity, nan=1.0), settings.max_weight)
    shown = examples.impressions > 0
    if examples.clicks.sum() < settings.least_clicks:
        shown = np.zeros(len(shown), bool)
    positive = np.where(shown, weights * examples.clicks, 0.0)
    negative = np.where(shown, weights * (examples.impressions - examples.clicks), 0.0)
    if len(examples.approved):
        marked = np.isfinite(examples.approved) & ~shown
        positive = np.where(marked, settings.mark_weight * (examples.approved == 1), positive)
        negative = np.where(marked, settings.mark_weight * (examples.approved == 0), negative)
    if not (positive.sum() > 0 and negative.sum() > 0):
        raise ConfigError(
            f"there are {examples.clicks.sum():g} clicks and no marks of both kinds; a reward is trained on "
            f"{settings.least_clicks} clicks at least"
        )
    return shown, positive, negative


def _information(examples: Examples, within: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """What each impression of a row counts [n], 0-1: how well a creative's rate is known grows with its clicks only until what
    is left is how its picture differs from others, which no further click tells more of (overdispersion: Williams, 1982).

    Without it the few creatives that were shown most decide what is learned. Rows that were not shown count 1.
    """
    names = examples.variants if len(examples.variants) else np.arange(len(shown)).astype(str)
    _, first, at = np.unique(names.astype(str), return_index=True, return_inverse=True)
    clicks, impressions = (np.bincount(at, np.where(shown, v, 0.0)) for v in (examples.clicks, examples.impressions))
    unit = np.unique(within[first].astype(str), return_inverse=True)[1]
    there = impressions > 0
    n = int(unit.max(initial=-1)) + 1
    of_unit, all_shown, variants = (np.bincount(unit, v, n) for v in (clicks, impressions, there))
    share = impressions / np.maximum(all_shown, 1.0)[unit]
    expected = of_unit[unit] * share
    differ = _differ(clicks, expected, share, unit, variants)
    return np.where(shown, (1 / (1 + differ * expected))[at], 1.0)


def _differ(
    clicks: np.ndarray, expected: np.ndarray, share: np.ndarray, unit: np.ndarray, variants: np.ndarray
) -> float:
    """Variance of the rates of a unit's variants, relative to its rate (squared coefficient of variation).

    By moments over units with two variants or more: Pearson's statistic of a unit is its degrees of freedom and that variance
    times clicks (1 - sum of squared shares). Units count the less the better they are known, so that none decides alone.
    """
    n = len(variants)
    apart = np.where(expected > 0, (clicks - expected) ** 2 / np.maximum(expected, LEAST_SHARE), 0.0)
    spare = np.bincount(unit, apart, n) - (variants - 1)
    tells = np.bincount(unit, expected, n) * (1 - np.bincount(unit, share**2, n))
    use = (variants > 1) & (tells > 0)
    if not use.any():
        return 0.0
    spare, tells, each = spare[use], tells[use], (tells / np.maximum(variants - 1, 1))[use]
    differ = 0.0
    for _ in range(_STEPS):
        weights = 1 / (1 + differ * each) ** 2
        differ = max(0.0, float((weights * spare).sum() / (weights * tells).sum()))
    return differ


class _HeldOut:
    """What held-out predictions say, of the rows `at` of the examples."""

    def __init__(
        self,
        examples: Examples,
        at: np.ndarray,
        counts: Counts,
        weighed: Counts,
        logits: np.ndarray,
        parts: Parts,
        settings: RewardTraining,
    ):
        self.examples, self.at, self.counts, self.weighed, self.logits = examples, at, counts, weighed, logits
        self.clip = examples.clip_scores[at]
        self.learned = calibrated(settings.calibration, logits, counts, parts)
        self.losses = relative_losses(logits, weighed, parts), relative_losses(self.clip, weighed, parts)

    def figures(self, weights: dict[str, float], marks: int) -> RewardFigures:
        everything = np.ones(len(self.at), bool)
        families = self.examples.families[self.at].astype(str)
        total = self._compared(everything)
        order, losses = total.auc_gain, total.log_loss_gain
        return RewardFigures(
            creatives=self._creatives(everything),
            products=len(np.unique(self.counts.groups)),
            impressions=total.impressions,
            clicks=total.clicks,
            marks=marks,
            total=total,
            families={name: self._compared(families == name) for name in sorted(set(families))},
            calibration=bins(self.learned, self.counts.positive, self.counts.negative),
            weights=weights,
            values=self._values(),
            # Its order decides what is shown, so that has to be surely better; its probabilities better on average.
            surely_better=bool(order and order.low and order.low > 0 and losses and losses.mean > 0),
        )

    def _compared(self, rows: np.ndarray) -> Comparison:
        positive, negative = self.weighed.positive[rows], self.weighed.negative[rows]
        clusters = Clusters(self.counts.groups[rows])
        units = np.zeros(int(rows.sum())) if self.counts.units is None else self.counts.units[rows]
        ours, theirs = Order(self.logits[rows], units), Order(self.clip[rows], units)

        def gain(drawn: np.ndarray) -> float:
            return ours.auc(drawn * positive, drawn * negative) - theirs.auc(drawn * positive, drawn * negative)

        auc, clip_auc = (o.auc(positive, negative) for o in (ours, theirs))
        compares = bool(np.isfinite(auc))
        mine, other = (losses[rows] for losses in self.losses)
        total = positive + negative
        return Comparison(
            creatives=self._creatives(rows),
            impressions=round(self.examples.impressions[self.at][rows].sum()),
            clicks=round(self.examples.clicks[self.at][rows].sum()),
            auc=auc if compares else None,
            clip_auc=clip_auc if compares else None,
            auc_gain=clusters.of(gain) if compares else None,
            log_loss=float(mine.sum() / total.sum()),
            clip_log_loss=float(other.sum() / total.sum()),
            log_loss_gain=clusters.ratio(other - mine, total),
        )

    def _creatives(self, rows: np.ndarray) -> int:
        variants = self.examples.variants
        return len(np.unique(variants[self.at][rows])) if len(variants) else int(rows.sum())

    def _values(self) -> list[Value]:
        e, at = self.examples, self.at
        if not len(e.places) or not len(e.variants):
            return []
        logged = off_policy.Logged(
            e.places[at], e.variants[at], e.impressions[at], e.clicks[at], e.propensity[at], e.groups[at]
        )
        return off_policy.values(logged, self.logits, self.clip, self.learned)


def _scale(clip: np.ndarray, logits: np.ndarray, units: np.ndarray) -> Scale:
    return Scale(
        clip_mean=float(clip.mean()),
        clip_sd=_within(clip, units),
        logit_mean=float(logits.mean()),
        logit_sd=_within(logits, units),
    )


def _within(values: np.ndarray, units: np.ndarray) -> float:
    """Standard deviation of values [n] about the means of their units."""
    _, at = np.unique(units.astype(str), return_inverse=True)
    means = np.bincount(at, values) / np.bincount(at)
    return max(float(np.sqrt(((values - means[at]) ** 2).mean())), LEAST_SHARE)


def _weights(regression: Regression, examples: Examples, dimensions: int) -> dict[str, float]:
    named = [COSINE, *examples.figures]
    return dict(zip(named, regression.weights[-len(named) :].tolist(), strict=True))
