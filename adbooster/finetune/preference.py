"""Pairs of pictures of which one is preferred (schema.PREFERENCES): from marks, click rates, or scores of candidates.

Both pictures of a pair show one product for one cohort and prompt, in one placement and size; where the product stands may
differ, and each keeps its own layout.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from scipy import stats

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digests, row_keys
from adbooster.experiments.config import Allocation
from adbooster.experiments.outcomes import of_creatives
from adbooster.experiments.robots import human_clicks
from adbooster.finetune.config import ColdStart, FinetuneConfig, Preference
from adbooster.storage import tables
from adbooster.storage.inputs import read_input
from adbooster.storage.objects import Root

MAX_BYTES = 1 << 30  # of a file of pairs: some millions
QUANTILES = 200  # of a click rate's posterior, over which another's is averaged
_ONE_PLACE = ("product_id", "cohort_id", "placement", "prompt", "width", "height")
_OF_CREATIVE: tuple[str, ...] = ("creative_id", *_ONE_PLACE, "photo_sha256", "layout", "fallback", "uri")


def known_pairs(root: Root, config: FinetuneConfig) -> pa.Table:
    """The pairs of `pairs_uri`, or else of the root's tables, by their ids; those whose pictures are gone are left out.

    raises ConfigError if the file is no table of pairs
    """
    given = config.preference.pairs_uri
    pairs = _from_file(given, config.signing_key_env) if given else _from_tables(root, config.preference.sure)
    uris = {uri for n in ("photo_uri", "mask_uri", "winner_uri", "loser_uri") for uri in pairs[n].to_pylist()}
    gone = pa.array(root.missing(uris), pa.string())
    for name in ("photo_uri", "mask_uri", "winner_uri", "loser_uri"):
        pairs = pairs.filter(pc.invert(pc.is_in(pairs[name], gone)))
    return pairs


def united(parts: list[pa.Table]) -> pa.Table:
    """All pairs by their ids, each once: of the first part that has it."""
    rows = pa.concat_tables(parts)
    _, first = np.unique(rows["pair_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return rows.take(pa.array(first, pa.int64()))


def check_enough(pairs: pa.Table, settings: Preference) -> None:
    """raises ConfigError if there are fewer pairs than are learned from"""
    if pairs.num_rows < settings.min_pairs:
        counts = ", ".join(f"{n} {source}" for source, n in sorted(schema.counted(pairs["source"]).items()))
        raise ConfigError(
            f"there are {pairs.num_rows} pairs to learn from{f' ({counts})' if counts else ''} and preference.min_pairs is "
            f"{settings.min_pairs}; marks, outcomes or preference.cold_start give more"
        )


def scorer(cold: ColdStart) -> str:
    """Address of the CLIP that orders the candidates of a cold start."""
    return cold.judge_model if cold.by == "judge" else cold.rank_model


def approved_over_rejected(marks: pa.Table, creatives: pa.Table, products: pa.Table) -> pa.Table:
    """Every approved creative over every rejected one of the same place.

    marks      schema.MARKS
    creatives  rows of schema.CREATIVES, live or not
    products   product_id, photo_uri, photo_sha256, mask_uri of what the products look like now
    """
    sides = [
        creatives.filter(pc.is_in(creatives["creative_id"], marks.filter(pc.equal(marks["mark"], mark))["creative_id"]))
        for mark in ("approved", "rejected")
    ]
    winners, losers = _crossed(*sides)
    return _pairs(winners, losers, products, "approved", np.ones(winners.num_rows))


def clicked_over_ignored(outcomes: pa.Table, creatives: pa.Table, products: pa.Table, sure: float) -> pa.Table:
    """Creatives over others of the same place whose click rate is lower with a probability of `sure` at least.

    outcomes   schema.OUTCOMES; rates are Beta posteriors, with a prior worth one click at the rate of all; clicks of robots
               count as usual ones
    creatives, products  as in `approved_over_rejected`
    """
    counts = of_creatives(outcomes)
    clicks = pa.array(human_clicks(counts, Allocation().max_ctr_factor))
    counts = counts.set_column(counts.schema.get_field_index("clicks"), "clicks", clicks)
    counts = counts.group_by("creative_id").aggregate([("impressions", "sum"), ("clicks", "sum")])
    at = pc.index_in(creatives["creative_id"], counts["creative_id"].combine_chunks())
    creatives, at = creatives.filter(pc.is_valid(at)), pc.drop_null(at)
    shown, clicks = (counts[f"{n}_sum"].take(at) for n in ("impressions", "clicks"))
    creatives = creatives.append_column("shown", shown).append_column("clicks", clicks)
    total = [float(pc.sum(counts[f"{n}_sum"]).as_py() or 0) for n in ("impressions", "clicks")]
    prior = (total[1] + 1) / (total[0] + 2)
    winners, losers = _crossed(creatives, creatives)
    probability = _above(*(_posterior(side, prior) for side in (winners, losers)))
    surely = pa.array(probability >= sure, pa.bool_())
    return _pairs(winners.filter(surely), losers.filter(surely), products, "clicks", probability[probability >= sure])


def better_over_worse(candidates: pa.Table, source: str, min_margin: float) -> pa.Table:
    """Of each request's candidates the best over the worst, the next best over the next worst..., while they differ enough.

    candidates  schema.CANDIDATES
    source      whose scores they are: rank or judge
    """
    rows = candidates.sort_by([("request_id", "ascending"), ("score", "descending"), ("uri", "ascending")])
    _, number, n = np.unique(
        rows["request_id"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True, return_counts=True
    )
    first = np.concatenate([[0], np.cumsum(n)[:-1]]).astype(np.int64)[number]
    here = np.arange(rows.num_rows)
    other = first + n[number] - 1 - (here - first)  # as far from the worst as this is from the best
    scores = rows["score"].to_numpy()
    chosen = (here < other) & (scores[here] - scores[other] >= min_margin)
    winners, losers = (rows.take(pa.array(at[chosen], pa.int64())) for at in (here, other))
    return _of(winners, losers, source, np.ones(winners.num_rows))


def _from_file(uri: str, signing_key_env: str) -> pa.Table:
    given = read_input(uri, "pairs file", MAX_BYTES, signing_key_env)
    try:
        rows = pap.read_table(pa.BufferReader(given.content))
    except pa.ArrowInvalid as e:
        raise ConfigError(f"the pairs file {uri} is no Parquet file: {e}") from e
    rows = schema.check(rows, schema.PREFERENCES, f"the pairs file {uri}")
    for name in (n for n in schema.PREFERENCES.names if n not in ("cohort_id", "placement")):
        if rows[name].null_count:
            raise ConfigError(f"the pairs file {uri} has {rows[name].null_count} rows without {name}")
    return united([rows])


def _from_tables(root: Root, sure: float) -> pa.Table:
    marks, outcomes = tables.read(root, "marks"), tables.read(root, "outcomes")
    named = pc.unique(pa.chunked_array([*marks["creative_id"].chunks, *outcomes["creative_id"].chunks], pa.string()))
    creatives, products = _creatives(root, named), _products(root)
    return united(
        [
            approved_over_rejected(marks, creatives, products),
            clicked_over_ignored(outcomes, creatives, products, sure),
        ]
    )


def _creatives(root: Root, wanted: pa.Array) -> pa.Table:
    """Creatives by id: live ones, and others as the newest versions of the table that are still there had them."""
    rows = tables.ever(root, "creatives", wanted, list(_OF_CREATIVE))
    return rows.filter(pc.and_(pc.invert(pc.fill_null(rows["fallback"], True)), pc.is_valid(rows["layout"])))


def _products(root: Root) -> pa.Table:
    rows = tables.read(root, "samples", ["product_id", "role", "photo_uri", "photo_sha256", "mask_uri", "reject"])
    rows = rows.filter(pc.and_(pc.equal(rows["role"], "main"), pc.is_null(rows["reject"])))
    return rows.select(["product_id", "photo_uri", "photo_sha256", "mask_uri"])


def _crossed(winners: pa.Table, losers: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Every winner with every loser of the same place, row by row."""
    sides = []
    for name, rows in (("winner", winners), ("loser", losers)):
        texts = pa.table({n: rows[n].cast(pa.string()) for n in _ONE_PLACE})
        sides.append(pa.table({"place": row_keys(texts, _ONE_PLACE), name: pa.array(range(rows.num_rows), pa.int64())}))
    both = (
        sides[0].join(sides[1], "place", join_type="inner").sort_by([("winner", "ascending"), ("loser", "ascending")])
    )
    return winners.take(both["winner"]), losers.take(both["loser"])


def _posterior(rows: pa.Table, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Both parameters of each row's Beta."""
    shown, clicks = (rows[n].to_numpy().astype(np.float64) for n in ("shown", "clicks"))
    return 1 + clicks, 1 / prior - 1 + np.maximum(shown - clicks, 0)


def _above(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float [n]: probability that a rate of one posterior is above that of the other."""
    middles = (np.arange(QUANTILES) + 0.5) / QUANTILES
    rates = stats.beta.ppf(middles[None], one[0][:, None], one[1][:, None])
    return stats.beta.cdf(rates, other[0][:, None], other[1][:, None]).mean(1)


def _pairs(winners: pa.Table, losers: pa.Table, products: pa.Table, source: str, weight: np.ndarray) -> pa.Table:
    """Of creatives; without those of a product whose photo is another now, or which is gone."""
    at = pc.index_in(winners["product_id"], products["product_id"].combine_chunks())
    of = products.take(at)
    known = winners.rename_columns({"width": "width_px", "height": "height_px"})
    known = known.append_column("photo_uri", of["photo_uri"]).append_column("mask_uri", of["mask_uri"])
    same = pc.and_(
        *(pc.fill_null(pc.equal(rows["photo_sha256"], of["photo_sha256"]), False) for rows in (winners, losers))
    )
    return _of(known, losers, source, weight).filter(same)


def _of(winners: pa.Table, losers: pa.Table, source: str, weight: np.ndarray) -> pa.Table:
    """schema.PREFERENCES of pictures with uri and layout, row by row."""
    sides = {
        f"{side}_{n}": rows[n] for side, rows in (("winner", winners), ("loser", losers)) for n in ("uri", "layout")
    }
    n = winners.num_rows
    made = {
        "pair_id": digests(winners["prompt"], winners["uri"], losers["uri"]) if n else pa.array([], pa.string()),
        "source": pa.array([source] * n, pa.string()),
        "weight": pa.array(weight, pa.float32()),
    }
    kept = {name: winners[name] for name in schema.PREFERENCES.names if name in winners.column_names}
    return schema.check(pa.table(kept | made | sides), schema.PREFERENCES)
