"""Weights tuned on what one simulated month preferred: pairs of a place whose click-through rates surely differ."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
from scipy import stats

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.experiments.config import Allocation
from adbooster.finetune.config import FinetuneConfig
from adbooster.painting.requests import Planner
from adbooster.pictures import images
from adbooster.storage.buckets import WHOLE
from adbooster.storage.objects import Root
from tests.benchmarks import paper
from tests.benchmarks.audience_shop import Month, Policy, month
from tests.benchmarks.audience_world import Audience, Pool, stocked

SURE, DRAWS = 0.9, 2000
STEPS, BETA, RATE, BATCH = 60, 150, 2e-5, 8


def month_before(pool: Pool, seed: int, policy: Policy) -> Month:
    """A month of this policy before another audience, whose tastes do not change: what comes after is not known in it."""
    people = Audience([pool], seed)
    people.true = [people.true[0], people.true[0]]
    return month([pool], people, policy, Allocation(seed=seed))


def tuned(work: Path, pool: Pool, seen: Month) -> str:
    """Address of weights tuned by preference on what a month has shown; trained once for the same month."""
    root, config = stocked(work, str(paper.TINY / "models" / "outpaint"), pool.clip.shape[1])
    month_id = digest(*(column.tobytes().hex() for column in seen.log.columns()))[:16]
    file = work / f"preferences-{month_id}.parquet"
    if not file.exists():
        pap.write_table(_pairs(work, root, config, pool, seen), file)
    preference = {"beta": BETA, "pairs_uri": str(file), "min_pairs": 20}
    flags = {"preference": preference, "steps": STEPS, "learning_rate": RATE, "batch": BATCH, "checkpoint_every": 20}
    return _finetune(Path(root.uri), flags)


def _finetune(root: Path, values: dict) -> str:
    from adbooster.cli.load import load
    from adbooster.cli.run import run

    flags = ["--config", str(paper.TINY / "paper.yaml"), "--root-uri", str(root), "--run-id", "preference"]
    config = load(FinetuneConfig, flags)
    plain = {"product_weight": 1.0, "border_weight": 1.0, "keep_base": 0.0, "prior": 0.0, "latents": {"placements": 0}}
    panel = {"panel": {"pictures": 32, "paintings": 0, "every": 0}}
    config = FinetuneConfig.model_validate(config.model_dump() | plain | panel | values)
    report = run(config, "adbooster.finetune.job:finetune")
    print(f"preference tuning: {report.model_dump_json()}")
    return report.weights


def _pairs(work: Path, root: Root, config, pool: Pool, seen: Month) -> pa.Table:
    """schema.PREFERENCES of a month's log; the pool's pictures become objects of the root."""
    planner = Planner(root, config.recipe, "base", config.prompts, config.targeting, config.rank_model)
    requests = {(r["product_id"], r["cohort_id"]): r for r in planner.plan(WHOLE).requests.to_pylist()}
    _, pair, _, number, _, shown, clicks = seen.log.columns()
    k = pool.clip.shape[1]
    counts = [np.bincount(pair * k + number, values, pool.clip.size).reshape(-1, k) for values in (shown, clicks)]
    pictures, rng, rows = _pictures(work, k), np.random.default_rng(0), []
    prior = counts[1].sum() / counts[0].sum()
    for at, (product, cohort) in enumerate(zip(pool.products, pool.cohorts, strict=True)):
        known = np.flatnonzero(counts[0][at])
        draws = {
            i: stats.beta.rvs(
                1 + counts[1][at, i], 1 / prior + counts[0][at, i] - counts[1][at, i], size=DRAWS, random_state=rng
            )
            for i in known
        }
        for winner in known:
            for loser in known:
                sure = float((draws[winner] > draws[loser]).mean())
                if winner != loser and sure >= SURE:
                    rows.append(
                        _row(root, pool, requests[product, cohort], pictures, at, int(winner), int(loser), sure)
                    )
    return pa.Table.from_pylist(rows, schema.PREFERENCES)


def _pictures(work: Path, k: int) -> np.ndarray:
    """The base pool's pictures, uint8 [P,K,h,w,3]."""
    parts = sorted((work / "base-parts").glob("*.npz"), key=lambda p: int(p.stem))
    return np.concatenate([np.load(part)["previews"] for part in parts])


def _row(
    root: Root, pool: Pool, request: dict, pictures: np.ndarray, at: int, winner: int, loser: int, sure: float
) -> dict:
    high, wide = pictures.shape[2:4]
    uris = [root.put(images.encode_lossless(pictures[at, i]), "webp") for i in (winner, loser)]
    return {
        "pair_id": digest(request["request_id"], *uris),
        **{n: request[n] for n in ("product_id", "cohort_id", "prompt", "placement", "photo_uri", "mask_uri")},
        "winner_uri": uris[0],
        "loser_uri": uris[1],
        "winner_layout": _layout(pool, at, winner, wide, high),
        "loser_layout": _layout(pool, at, loser, wide, high),
        "width_px": wide,
        "height_px": high,
        "source": "clicks",
        "weight": sure,
    }


def _layout(pool: Pool, at: int, number: int, wide: int, high: int) -> dict[str, int]:
    share = {name: float(values[at, number]) for name, values in pool.figures.items()}
    box = {"width_px": round(share["product_width"] * wide), "height_px": round(share["product_height"] * high)}
    foot = round(share["product_foot"] * high)
    return box | {"x_px": round(share["product_left"] * wide), "y_px": foot - box["height_px"]}
