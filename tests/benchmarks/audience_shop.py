"""A month of a simulated shop under one policy: what is shown, what is learned of it by the library, and what is clicked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.experiments.allocation import posterior, retirements
from adbooster.experiments.allocation import shares as shares_of
from adbooster.experiments.config import Allocation, Retirement
from adbooster.reward.config import RewardTraining
from adbooster.reward.features import features
from adbooster.reward.training import Examples, train_reward
from tests.benchmarks.audience_world import Audience, Pool

FIRST_DAY = date(2026, 1, 1)
RETIREMENT = Retirement(most=20, probability=0.95, min_impressions=500)


@dataclass(frozen=True)
class Policy:
    """What a shop does.

    keep      variants live in a place; 0: originals
    learns    outcomes decide shares and retirements
    trains    nights on which a reward is trained, on the month before and what is known by then; where it is surely better
              than CLIP, the catalog is painted anew, ranked by the blend
    weight    of the learned part in the blend
    pool      that candidates come from
    """

    name: str
    keep: int = 1
    learns: bool = False
    trains: tuple[int, ...] = ()
    weight: float = 0.7
    pool: int = 0


@dataclass
class Month:
    """What came of it.

    clicks, impressions, expected  a night; expected clicks an impression of what was shown, by the true rates
    regret  a night: expected clicks that the best candidate of every place would have brought beyond it
    log     all rows shown, as `Log`; largest_moves  largest change of a share a night
    """

    clicks: np.ndarray
    impressions: np.ndarray
    expected: np.ndarray
    regret: np.ndarray
    log: "Log"
    largest_moves: list[float] = field(default_factory=list)
    retired: int = 0
    rewards: list[dict] = field(default_factory=list)
    shares_of_bots: list[float] = field(default_factory=list)


class Log:
    """What was shown and clicked, as columns."""

    def __init__(self, pools: Sequence[Pool]):
        self.pools, self.parts = pools, []
        self.product, self.cohort, self.family = (getattr(pools[0], n) for n in ("products", "cohorts", "families"))

    def add(
        self,
        night: int,
        pool: np.ndarray,
        number: np.ndarray,
        propensity: np.ndarray,
        shown: np.ndarray,
        clicks: np.ndarray,
    ) -> None:
        n = len(pool)
        self.parts.append((np.full(n, night), np.arange(n), pool, number, propensity, shown, clicks))

    def columns(self) -> list[np.ndarray]:
        """night, pair, pool, number, propensity, impressions, clicks"""
        return [np.concatenate(c) for c in zip(*self.parts, strict=True)]

    def outcomes(self) -> pa.Table:
        """schema.OUTCOMES"""
        night, pair, pool, number, propensity, shown, clicks = self.columns()
        ids = names(pair, pool, number)
        days = [FIRST_DAY + timedelta(int(n)) for n in night]
        columns = {
            "outcome_id": [f"{name} {n}" for name, n in zip(ids, night, strict=True)],
            "creative_id": ids,
            "day": days,
            "channel": [""] * len(ids),
            "product_id": self.product[pair],
            "cohort_id": self.cohort[pair],
            "family": self.family[pair],
            "placement": ["square"] * len(ids),
            "control": pool < 0,
            "margin": margins(self.pools, pair, pool, number),
            "impressions": shown,
            "clicks": clicks,
            "conversions": np.zeros(len(ids), int),
            "propensity": propensity,
        }
        return schema.fill(pa.table(columns), schema.OUTCOMES)


def names(pair: np.ndarray, pool: np.ndarray, number: np.ndarray) -> list[str]:
    return [f"{p:08x}{q + 1:02x}{n:06x}" for p, q, n in zip(pair, pool, number, strict=True)]


def margins(pools: Sequence[Pool], pair: np.ndarray, pool: np.ndarray, number: np.ndarray) -> np.ndarray:
    out = np.zeros(len(pair), np.float32)
    for i, some in enumerate(pools):
        at = pool == i
        out[at] = some.clip[pair[at], number[at]] - some.own[pair[at]]
    return out


def month(
    pools: Sequence[Pool],
    audience: Audience,
    policy: Policy,
    allocation: Allocation,
    bots: tuple[int, int] | None = None,
    before: "Log | None" = None,
) -> Month:
    """`nights` of one policy.

    bots    (first, after) nights on which robots click one creative of the pair shown most
    before  what another audience was shown, and clicked, the month before
    """
    pairs, log, nights = len(pools[0].products), Log(pools), audience.nights
    everybody, chance = np.arange(pairs), np.random.default_rng([audience.seed, 9])
    scores = [p.clip for p in pools]
    live = _best(scores[policy.pool], policy.keep, policy.pool) if policy.keep else []
    used = [set(own) for own in live]
    shares = schema.ALLOCATIONS.empty_table()
    done = Month(np.zeros(nights), np.zeros(nights), np.zeros(nights), np.zeros(nights), log)
    clicked: tuple[int, int] | None = None
    target = int(np.argmax(audience.daily))
    for night in range(nights):
        if night in policy.trains:
            head, figures = train_reward(
                _examples(pools, _seen(before, log), night, allocation.half_life_days), _TRAINING
            )
            done.rewards.append(
                {
                    "night": night,
                    "surely_better": figures.surely_better,
                    "auc": figures.total.auc,
                    "clip_auc": figures.total.clip_auc,
                }
            )
            if figures.surely_better:  # what the canary of rewards asks for
                scores = [_blend(head, p, policy.weight) for p in pools]
                live = _best(scores[policy.pool], policy.keep, policy.pool)
                used = [set(own) for own in live]
        weights = [np.full(len(own), 1 / len(own)) for own in live]
        if policy.learns and night:
            variants = _variants(pools, live)
            known = posterior(log.outcomes(), variants, allocation, FIRST_DAY + timedelta(night))
            former, shares = shares, shares_of(known, shares, allocation)
            done.largest_moves.append(_move(former, shares))
            gone = set(retirements(known, RETIREMENT)["creative_id"].to_pylist())
            done.retired += len(gone)
            weights = _replaced(live, used, scores, _of(shares, live), gone)
        if policy.keep:
            drawn = [int(chance.choice(len(own), p=w / w.sum())) for own, w in zip(live, weights, strict=True)]
            pool, number = (np.array([own[d][i] for own, d in zip(live, drawn, strict=True)]) for i in (0, 1))
            propensity = np.array([w[d] / w.sum() for w, d in zip(weights, drawn, strict=True)])
            true = audience.rates(night)
            rates = np.choose(pool, [t[everybody, np.minimum(number, t.shape[1] - 1)] for t in true])
        else:
            pool, number, propensity, rates = (
                np.full(pairs, -1),
                np.zeros(pairs, int),
                np.ones(pairs),
                audience.originals,
            )
        shown, clicks = audience.click(rates)
        done.clicks[night], done.impressions[night] = clicks.sum(), shown.sum()
        best = audience.rates(night)[policy.pool].max(1)
        done.expected[night] = (audience.daily * rates).sum() / audience.daily.sum()
        done.regret[night] = (audience.daily * (best - rates)).sum()
        if bots and bots[0] <= night < bots[1]:
            clicked = clicked or live[target][-1]
            there = [w for variant, w in zip(live[target], weights[target], strict=True) if variant == clicked]
            done.shares_of_bots.append(float(sum(there) / weights[target].sum()))
            if (pool[target], number[target]) == clicked:
                shown[target] += 2000
                clicks[target] += 1900
        log.add(night, pool, number, propensity, shown, clicks)
    return done


_TRAINING = RewardTraining(on=True)


def _best(scores: np.ndarray, keep: int, pool: int) -> list[list[tuple[int, int]]]:
    return [[(pool, int(k)) for k in row[:keep]] for row in np.argsort(-scores, axis=1, kind="stable")]


def _variants(pools: Sequence[Pool], live: list[list[tuple[int, int]]]) -> pa.Table:
    pair, pool, number = (np.array(c) for c in zip(*[(i, *v) for i, own in enumerate(live) for v in own], strict=True))
    first = pools[0]
    return pa.table(
        {
            "product_id": first.products[pair],
            "cohort_id": first.cohorts[pair],
            "family": first.families[pair],
            "placement": ["square"] * len(pair),
            "creative_id": names(pair, pool, number),
            "margin": margins(pools, pair, pool, number),
        }
    )


def _of(shares: pa.Table, live: list[list[tuple[int, int]]]) -> list[np.ndarray]:
    known = dict(zip(shares["creative_id"].to_pylist(), shares["weight"].to_pylist(), strict=True))
    return [np.array([known[n] for n in _ids(i, own)]) for i, own in enumerate(live)]


def _ids(pair: int, own: list[tuple[int, int]]) -> list[str]:
    pools, numbers = (np.array(c) for c in zip(*own, strict=True))
    return names(np.full(len(own), pair), pools, numbers)


def _replaced(
    live: list[list[tuple[int, int]]],
    used: list[set[tuple[int, int]]],
    scores: Sequence[np.ndarray],
    weights: list[np.ndarray],
    gone: set[str],
) -> list[np.ndarray]:
    """Retired variants make room for the next best of their pool; a new one is given an even share."""
    for i, own in enumerate(live):
        for at, name in enumerate(_ids(i, own)):
            if name not in gone:
                continue
            pool = own[at][0]
            left = [int(k) for k in np.argsort(-scores[pool][i], kind="stable") if (pool, int(k)) not in used[i]]
            if left:
                own[at] = (pool, left[0])
                used[i].add(own[at])
                weights[i] = weights[i].copy()
                rest = np.delete(np.arange(len(own)), at)
                weights[i][rest] *= (1 - 1 / len(own)) / max(weights[i][rest].sum(), 1e-9)
                weights[i][at] = 1 / len(own)
    return weights


def _move(before: pa.Table, after: pa.Table) -> float:
    """The largest change of a share in places whose variants are the same as before."""
    known, now = ({r["creative_id"]: r for r in t.to_pylist()} for t in (before, after))
    new = {name[:8] for name in known.keys() ^ now.keys()}  # names begin with that of the pair
    return max((abs(r["weight"] - known[n]["weight"]) for n, r in now.items() if n[:8] not in new), default=0.0)


def _seen(before: Log | None, log: Log) -> list[np.ndarray]:
    """Columns of both logs, the nights of the first counted back from night 0."""
    known = []
    if before:
        night, *others = before.columns()
        known.append([night - night.max() - 1, *others])
    if log.parts:
        known.append(log.columns())
    return [np.concatenate(columns) for columns in zip(*known, strict=True)]


def _examples(pools: Sequence[Pool], columns: list[np.ndarray], night: int, half_life: float) -> Examples:
    """One row a variant, its nights together, old ones discounted."""
    when, pair, pool, number, propensity, shown, clicks = columns
    name = (pair * len(pools) + pool) * pools[0].clip.shape[1] + number
    ids, first, at = np.unique(name, return_index=True, return_inverse=True)
    discount = 0.5 ** ((night - when) / half_life)
    pair, pool, number = pair[first], pool[first], number[first]
    some = pools[0]

    def of(values: list[np.ndarray]) -> np.ndarray:
        return np.stack([values[q][i, k] for q, i, k in zip(pool, pair, number, strict=True)])

    return Examples(
        image_vectors=of([p.vectors for p in pools]),
        text_vectors=some.texts[pair],
        figures={n: of([p.figures[n] for p in pools]) for n in some.figures},
        impressions=np.bincount(at, discount * shown, len(ids)),
        clicks=np.bincount(at, discount * clicks, len(ids)),
        propensity=np.bincount(at, shown, len(ids)) / np.maximum(np.bincount(at, shown / propensity, len(ids)), 1e-9),
        groups=some.products[pair],
        families=some.families[pair],
        cohorts=some.cohorts[pair],
        clip_scores=of([p.clip for p in pools]),
        places=pair.astype(str),
        variants=ids.astype(str),
    )


def _blend(head, pool: Pool, weight: float) -> np.ndarray:
    pairs, k = pool.clip.shape
    flat = {name: values.ravel() for name, values in pool.figures.items()}
    seen = features(pool.vectors.reshape(pairs * k, -1), np.repeat(pool.texts, k, axis=0), flat)
    return head.blend(pool.clip.ravel(), head.logits(seen), weight).reshape(pairs, k)
