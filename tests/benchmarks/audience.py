"""Clicks of a simulated audience whose taste the learner does not know: originals, CLIP alone, bandit, bandit with a learned score.

    python -m tests.benchmarks.audience                       # painted pools, preference tuning, 10 audiences
    python -m tests.benchmarks.audience --quick               # composed pictures, 4 audiences, no tuning

Thirty nights a month. Everything but people, pictures' delivery and the clock is the library's: allocation, retirement, reward,
blend, lift. Audiences share a part of their tastes (so what one month teaches can help the next) and have a part of their
own; tastes change at half-time, and say on average nothing of what CLIP would choose. Candidates come from pools: of each pair
paintings by the base and, without --quick, by weights that were preference-tuned on the clicks of a month before another
audience. A reward is trained on that month too, and anew each week; it is used only where it is surely better than CLIP.
The last line is one JSON object: `lift` is that of
clicks with all that is learned over CLIP alone, paired by audience, with its 95 % interval (Student's t).
`false_positive_rate` is the share of months without any taste in which the lift over originals was ever said to be sure.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from importlib import metadata
from pathlib import Path

import numpy as np
from scipy import stats

from adbooster.contracts.evaluation import Interval
from adbooster.experiments.config import Allocation, Holdout
from adbooster.experiments.holdout import held_out
from adbooster.experiments.lift import lift
from tests.benchmarks import audience_tuning, paper
from tests.benchmarks.audience_shop import Log, Month, Policy, month
from tests.benchmarks.audience_world import Audience, Pool, composed, painted

NIGHTS, TUNED_ON = 30, 1000  # the audience whose month preferences are taken from; it is none of those compared
ORIGINALS = Policy("originals", keep=0)
CLIP = Policy("CLIP alone")
BANDIT = Policy("bandit", keep=3, learns=True)
ALL = Policy("bandit, learned score", keep=3, learns=True, trains=(0, 8, 15, 22))
BASE, PRODUCTS = paper.TINY / "models" / "outpaint", 12
HOLDOUT = Holdout(share=0.2)
BOT_NIGHTS = (10, 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("audience-root"), help="where pools are kept, and found again"
    )
    parser.add_argument("--quick", action="store_true", help="composed pictures, 4 audiences, no preference tuning")
    parser.add_argument("--seeds", type=int, default=None, help="audiences; 10, or 4 with --quick")
    parser.add_argument("--months", type=int, default=200, help="months without taste")
    parser.add_argument("--no-tuning", action="store_true", help="painted pools, without preference tuning")
    given = parser.parse_args()
    started, work = time.monotonic(), given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    seeds = range(given.seeds or (4 if given.quick else 10))
    pools = [composed(work, 12, 12, 8) if given.quick else painted(work, str(BASE), "base", PRODUCTS, 12, 8)]
    before, everything = audience_tuning.month_before(pools[0], TUNED_ON, BANDIT), ALL
    if not (given.quick or given.no_tuning):
        weights = audience_tuning.tuned(work, pools[0], before)
        pools.append(painted(work, weights, f"tuned-{Path(weights).name}", PRODUCTS, 12, 8, pools[0]))
        everything = replace(ALL, name="bandit, learned score, preference tuning", pool=1)
    policies = (ORIGINALS, CLIP, BANDIT, everything)
    months = {p.name: [_month(pools, seed, p, before=before.log) for seed in seeds] for p in policies}
    print(_table(months))
    if len(pools) > 1:
        print(_tuning(pools, seeds))
    compared = {p.name: _gain(months[p.name], months[CLIP.name]) for p in (BANDIT, everything)}
    for name, (mean, low, high) in compared.items():
        print(f"{name} over CLIP alone: {mean:+.1%} [{low:+.1%}, {high:+.1%}] clicks, {len(seeds)} audiences")
    (work / "regret.svg").write_text(_curves({p.name: months[p.name] for p in policies}))
    wrong = _false_positives(pools[:1], given.months)
    print(
        f"without taste: {wrong} of {given.months} months in which a lift was ever said to be sure, looking every morning"
    )
    bots = _bots(pools, everything, before.log)
    print(f"robots click one creative on nights {BOT_NIGHTS}: {json.dumps(bots)}")
    mean, low, high = compared[everything.name]
    result = {
        "lift": round(mean, 4),
        "lift_interval": [round(low, 4), round(high, 4)],
        "false_positive_rate": round(wrong / given.months, 4),
        "bandit_lift": round(compared[BANDIT.name][0], 4),
        "audiences": len(seeds),
        "months": given.months,
        "bots": bots,
        "seconds": round(time.monotonic() - started),
    }
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("numpy", "scikit-learn", "torch"))
    print(f"Python {platform.python_version()}, {versions}")
    print(json.dumps(result))


def _month(
    pools: Sequence[Pool], seed: int, policy: Policy, bots: tuple[int, int] | None = None, before: Log | None = None
) -> Month:
    return month(pools, Audience(list(pools), seed, nights=NIGHTS), policy, Allocation(seed=seed), bots, before)


def _gain(some: list[Month], base: list[Month]) -> tuple[float, float, float]:
    """Relative gain in clicks an impression, paired by audience: (mean, low, high)."""
    rates = [[m.clicks.sum() / m.impressions.sum() for m in months] for months in (some, base)]
    gains = np.array(rates[0]) / np.array(rates[1]) - 1
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean()), float(gains.mean() - half), float(gains.mean() + half)


def _table(months: dict[str, list[Month]]) -> str:
    head = (
        "policy",
        "clicks a thousand impressions",
        "first half",
        "second half",
        "regret, clicks a night",
        "retired",
        "largest move of a share",
    )
    lines = [head, ("---",) * len(head)]
    for name, some in months.items():
        rate = _mean(some, lambda m: 1000 * m.clicks.sum() / m.impressions.sum())
        halves = [
            _mean(some, lambda m, at=at: 1000 * m.expected[at].mean())
            for at in (slice(0, NIGHTS // 2), slice(NIGHTS // 2, None))
        ]
        moves = max((x for m in some for x in m.largest_moves), default=0.0)
        cells = [f"{rate:.2f}", *(f"{h:.2f}" for h in halves), f"{_mean(some, lambda m: m.regret.mean()):.0f}"]
        lines.append((name, *cells, f"{_mean(some, lambda m: m.retired):.0f}", f"{moves:.2f}"))
    rewards = [r for some in months.values() for m in some for r in m.rewards]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if not rewards:
        return text
    better = sum(r["surely_better"] for r in rewards)
    auc, clip = (np.mean([r[k] for r in rewards if r[k] is not None]) for k in ("auc", "clip_auc"))
    return f"{text}\nrewards surely better than CLIP: {better} of {len(rewards)}; AUC on unseen products {auc:.3f}, CLIP {clip:.3f}"


def _mean(months: list[Month], of: Callable[[Month], float]) -> float:
    return float(np.mean([of(m) for m in months]))


def _tuning(pools: Sequence[Pool], seeds: range) -> str:
    """What the audiences make of a candidate of either pool, taken at random."""
    audiences = [Audience(list(pools), seed, nights=NIGHTS) for seed in seeds]
    rates = np.array([[[t.mean() for t in a.rates(night)] for night in (0, NIGHTS - 1)] for a in audiences]).mean(0)
    clip = [p.clip.mean() for p in pools]
    return (
        f"a candidate at random, base and preference-tuned: {1000 * rates[0, 0]:.2f} and {1000 * rates[0, 1]:.2f} clicks a thousand before "
        f"tastes change, {1000 * rates[1, 0]:.2f} and {1000 * rates[1, 1]:.2f} after; CLIP {clip[0]:.3f} and {clip[1]:.3f}"
    )


def _false_positives(pools: list[Pool], months: int) -> int:
    """Months without taste in which creatives were said to differ surely from originals on any morning."""
    wrong, pool = 0, pools[0]
    for number in range(months):
        people = Audience(pools, 5000 + number, taste=0.0, nights=NIGHTS)
        # Rates differ by pair in every month anew: which pairs are held out is what chance decides.
        rates = people.originals * np.exp(0.3 * np.random.default_rng([number, 7]).normal(size=len(pool.products)))
        control = held_out(pool.products, pool.cohorts, Holdout(share=HOLDOUT.share, salt=str(number))).to_numpy(
            zero_copy_only=False
        )
        log = Log(pools)
        for night in range(NIGHTS):
            shown, clicks = people.click(rates)
            log.add(night, np.where(control, -1, 0), np.zeros(len(rates), int), np.ones(len(rates)), shown, clicks)
        path = lift(log.outcomes()).together.path
        wrong += any(d.lift and _sure(d.lift) for d in path)
    return wrong


def _sure(of: Interval) -> bool:
    return of.low is not None and of.high is not None and not of.low <= 0 <= of.high


def _bots(pools: Sequence[Pool], policy: Policy, before: Log) -> dict:
    """A week in which robots click one creative: its share while they do, and what people's clicks lose by it."""
    calm, disturbed = (_month(pools, 500, policy, bots, before) for bots in (None, BOT_NIGHTS))
    share, limit = disturbed.shares_of_bots, Allocation()
    return {
        "share_before": round(share[0], 3),
        "share_most": round(max(share), 3),
        "largest_move": round(max(disturbed.largest_moves), 3),
        "most_allowed": limit.max_shift,
        "clicks_lost": round(1 - disturbed.expected.sum() / calm.expected.sum(), 4),
    }


def _curves(months: dict[str, list[Month]], wide: int = 760, high: int = 340) -> str:
    """Regret summed over the nights, mean of all audiences, as SVG."""
    sums = {name: np.cumsum(np.mean([m.regret for m in some], axis=0)) for name, some in months.items()}
    most, left, bottom = max(s[-1] for s in sums.values()), 70, high - 40
    colours = ("#777", "#26c", "#2a7", "#c52")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">']
    parts += ['<style>text{font:12px sans-serif}</style><rect width="100%" height="100%" fill="#fff"/>']
    parts += [f'<text x="{left}" y="16">clicks that were missed, summed over the nights</text>']
    for value in (0, most / 2, most):
        y = bottom - value / most * (bottom - 30)
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{value:,.0f}</text><line x1="{left}" x2="{wide - 20}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
        )
    for i, (name, values) in enumerate(sums.items()):
        points = " ".join(
            f"{left + n / (len(values) - 1) * (wide - left - 20):.0f},{bottom - v / most * (bottom - 30):.0f}"
            for n, v in enumerate(values)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[i]}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 10}" y="{48 + 16 * i}" fill="{colours[i]}">{escape(name)}</text>')
    parts.append(
        f'<text x="{left}" y="{high - 12}">night 1</text><text x="{wide - 20}" y="{high - 12}" text-anchor="end">night {NIGHTS}; tastes change at half-time</text></svg>'
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
