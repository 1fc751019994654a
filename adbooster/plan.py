"""Which requests a night has to paint: usable products x cohorts under one recipe, without what is there already."""

from collections import defaultdict
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from adbooster import schema, tables
from adbooster.errors import ConfigError
from adbooster.objects import Root, local_copy
from adbooster.prompting import Prompting, write_prompts
from adbooster.prompts import interest, product_words
from adbooster.recipe import digest
from adbooster.settings import Config


class Targeting(Config):
    """Which cohorts a product is painted for."""

    rule: Literal["all", "top_n"] = "all"
    """all: every cohort; top_n: the n whose query is nearest to the product's words, by the rank model's text tower."""
    n: int = Field(5, ge=1)
    """Cohorts a product under top_n."""


def usable_products(root: Root) -> list[dict]:
    """Products that can be painted: the main sample's row, with `words` and the photos of all its pictures."""
    rows = tables.read(root, "samples")
    rows = rows.filter(pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"])))
    own: dict[str, list[str]] = defaultdict(list)
    for row in rows.select(["product_id", "photo_uri", "role"]).to_pylist():
        if row["role"] != "main":
            own[row["product_id"]].append(row["photo_uri"])
    mains = rows.filter(pc.equal(rows["role"], "main")).sort_by("product_id").to_pylist()
    return [
        row
        | {
            "words": product_words(row["caption"], row["title"]),
            "own": [row["photo_uri"], *sorted(own[row["product_id"]])],
        }
        for row in mains
    ]


def requests(root: Root, prompting: Prompting, recipe_id: str, targeting: Targeting, rank_model: str) -> pa.Table:
    """All requests of the night (schema.REQUESTS), in an order that follows from their names alone.

    raises ConfigError if there is no usable product or no cohort
    """
    products = usable_products(root)
    cohorts = tables.read(root, "cohorts").sort_by("cohort_id").to_pylist()
    if not products:
        raise ConfigError(f"{root.uri}/tables/samples has no usable main picture; run jobs.prepare first")
    if not cohorts:
        raise ConfigError(f"{root.uri}/tables/cohorts has no cohort; run jobs.cohorts first")
    chosen = _targeted(products, cohorts, targeting, rank_model)
    pairs = [(p, cohorts[c]) for p, near in zip(products, chosen, strict=True) for c in near]
    texts = pa.Table.from_pylist([{name: (p | c)[name] for name in schema.PAIRS.names} for p, c in pairs], schema.PAIRS)
    written, _ = write_prompts(root, texts, prompting)
    prompted = written.select(["prompt", "negative_prompt", "prompt_style"]).to_pylist()
    rows = [_request(p, c, recipe_id, texts) for (p, c), texts in zip(pairs, prompted, strict=True)]
    return pa.Table.from_pylist(rows, schema.REQUESTS)


def _targeted(products: list[dict], cohorts: list[dict], targeting: Targeting, rank_model: str) -> list[list[int]]:
    """For each product the indices of its cohorts."""
    if targeting.rule == "all" or targeting.n >= len(cohorts):
        return [list(range(len(cohorts)))] * len(products)
    from adbooster.rank import Ranker

    ranker = Ranker(local_copy(rank_model), "cpu")
    words = ranker.embed_texts([p["words"] for p in products])
    queries = ranker.embed_texts([c["query"] for c in cohorts])
    order = np.argsort(-(words @ queries.T), axis=1, kind="stable")
    return [sorted(row.tolist()) for row in order[:, : targeting.n]]


def _request(product: dict, cohort: dict, recipe_id: str, texts: dict) -> dict:
    """Named by all that decides its creative: the product's pixels, the cohort's text, the prompts, the recipe."""
    text = interest(cohort["query"], cohort["context"])
    made_of = digest(product["product_id"], product["photo_sha256"], product["mask_uri"])
    wanted = digest(cohort["cohort_id"], text, texts["prompt"], texts["negative_prompt"])
    return texts | {
        "request_id": digest(made_of, wanted, recipe_id),
        "product_id": product["product_id"],
        "cohort_id": cohort["cohort_id"],
        "family": cohort["family"],
        "text": text,
        "photo_uri": product["photo_uri"],
        "photo_sha256": product["photo_sha256"],
        "mask_uri": product["mask_uri"],
        "own_photo_uris": product["own"],
        "reject": None,
    }


def staged_folder(run_id: str, recipe_id: str) -> str:
    return f"runs/{run_id}/staged/creatives-{recipe_id}"


def staged(root: Root, run_id: str, recipe_id: str) -> pa.Table:
    """What this run and unfinished runs of the same recipe have painted and not published (schema.STAGED)."""
    unfinished = [run for run in root.names("runs") if not root.exists(f"runs/{run}/report.json")]
    parts = [
        tables.read_staged(root, staged_folder(run, recipe_id), schema.STAGED)
        for run in dict.fromkeys([run_id, *unfinished])
    ]
    found = pa.concat_tables(parts)
    found = found.filter(pc.is_null(found["reject"]))
    first: dict[str, int] = {}
    for i, creative_id in enumerate(found["creative_id"].to_pylist()):
        first.setdefault(creative_id, i)
    return found.take(pa.array(list(first.values()), pa.int64()))


def without(rows: pa.Table, *done: pa.Table) -> pa.Table:
    """The anti-join on request_id."""
    ids = pa.concat_arrays([chunk for t in done for chunk in t["request_id"].chunks] or [pa.array([], pa.string())])
    return rows.filter(pc.invert(pc.is_in(rows["request_id"], ids)))
