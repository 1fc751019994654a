"""Requests: usable products x targeted cohorts x placements, each with its prompt and its name."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.recipe import Recipe, recipe_id
from adbooster.contracts.text import clean, interest
from adbooster.painting.brand_rules import BrandRules
from adbooster.painting.config import BrandFigures, PaintingConfig, Targeting
from adbooster.painting.targeting import listed
from adbooster.prompts.config import PromptFigures, Prompting
from adbooster.prompts.templates import product_words
from adbooster.prompts.writer import write_prompts
from adbooster.storage import tables
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

MAX_TEXT = 1000  # characters of a cohort's text; the scoring CLIP reads 77 tokens of it
PRODUCTS = pa.schema(
    [(name, pa.string()) for name in ("product_id", "category", "brand", "title", "caption", "words")]
    + [(name, pa.string()) for name in ("photo_uri", "photo_sha256", "mask_uri", "made_of")]
    + [("own_photo_uris", pa.list_(pa.string()))]
)


class Planned(NamedTuple):
    """requests (schema.REQUESTS); forbidden  pairs (product_id, cohort_id) that the targeting wants and brand rules forbid"""

    requests: pa.Table
    prompt_figures: PromptFigures
    forbidden: pa.Table
    brand_figures: BrandFigures


def usable_products(root: Root, by_category: bool = False) -> pa.Table:
    """Products that can be painted (PRODUCTS): the main sample's facts, and the photos of all its pictures.

    by_category  whether the category decides how a product stands, and so is part of what `made_of` names
    """
    rows = tables.read(root, "samples")
    rows = rows.filter(pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"])))
    own: dict[str, list[str]] = defaultdict(list)
    more = rows.filter(pc.not_equal(rows["role"], "main"))
    for product_id, photo_uri in zip(more["product_id"].to_pylist(), more["photo_uri"].to_pylist(), strict=True):
        own[product_id].append(photo_uri)
    mains = rows.filter(pc.equal(rows["role"], "main")).sort_by("product_id").to_pylist()
    for row in mains:
        row["words"] = product_words(row["caption"], row["title"])
        row["own_photo_uris"] = [row["photo_uri"], *sorted(own[row["product_id"]])]
        row["made_of"] = digest(
            row["product_id"], row["photo_sha256"], row["mask_uri"], row["category"] if by_category else ""
        )
    return pa.Table.from_pylist([{name: row[name] for name in PRODUCTS.names} for row in mains], PRODUCTS)


def usable_cohorts(root: Root) -> pa.Table:
    """The rows of tables/cohorts with their `text`, Q and C as scored against.

    raises ConfigError if there is none, or one whose text cannot be used
    """
    rows = tables.read(root, "cohorts").sort_by("cohort_id")
    if not rows.num_rows:
        raise ConfigError(f"{root.uri}/tables/cohorts has no cohort; run jobs.cohorts first")
    texts = []
    for row in rows.select(["cohort_id", "query", "context"]).to_pylist():
        texts_of_row = [row["query"] or "", row["context"] or ""]
        if any(clean(part) != part for part in texts_of_row):
            raise ConfigError(f"the text of cohort {row['cohort_id']!r} holds control characters or line breaks")
        texts.append(interest(*texts_of_row))
        if not 1 <= len(texts[-1]) <= MAX_TEXT:
            raise ConfigError(
                f"the text of cohort {row['cohort_id']!r} has {len(texts[-1])} characters; it should have 1 to {MAX_TEXT}"
            )
    return rows.append_column("text", pa.array(texts, pa.string()))


def revisions(config: PaintingConfig) -> tuple[str, str]:
    """(revision of the weights, recipe_id): content hashes of all that decides a picture besides product and cohort."""
    weights = content_hash(local_copy(config.weights))
    models = [f"{content_hash(local_copy(a.uri))} x {a.scale}" for a in config.adapters]
    models.append(content_hash(local_copy(config.rank_model)))
    models.append(mask_model(config.mask_model, config.mask_network).revision if config.mask_model else "")
    models.append(content_hash(local_copy(config.safety_model)) if config.safety_model else "")
    models += [content_hash(local_copy(config.preview_model))] if config.preview_model else []
    return weights, recipe_id(config.recipe, [weights, *models])


def plan_requests(
    root: Root,
    recipe: Recipe,
    recipe_id: str,
    prompting: Prompting,
    targeting: Targeting,
    rank_model: str,
    dry_run: bool = False,
    tokenizer_path: Path | None = None,
    signing_key_env: str = "",
    brand: tuple[BrandRules, date] | None = None,
) -> Planned:
    """All requests of the night, in an order that follows from their names alone, product by product.

    dry_run, tokenizer_path  as for write_prompts; signing_key_env  as for read_targeting
    brand                    rules and the day they are applied on: a pair that they forbid is no request
    raises ConfigError if there is no usable product or no cohort
    """
    products = usable_products(root, bool(recipe.stands))
    if not products.num_rows:
        raise ConfigError(f"{root.uri}/tables/samples has no usable main picture; run jobs.prepare first")
    cohorts = usable_cohorts(root)
    of_product, of_cohort = _targeted(products, cohorts, targeting, rank_model, signing_key_env)
    forbidden, brand_figures = pa.nulls(len(of_product), pa.bool_()).fill_null(False), BrandFigures()
    if brand:
        verdict = brand[0].judge(products, cohorts, of_product, of_cohort, brand[1])
        forbidden, brand_figures = pa.array(verdict.forbidden), verdict.figures
    not_painted = _columns(products, of_product.filter(forbidden), ("product_id",))
    not_painted |= _columns(cohorts, of_cohort.filter(forbidden), ("cohort_id",))
    of_product, of_cohort = (at.filter(pc.invert(forbidden)) for at in (of_product, of_cohort))
    pairs = _columns(products, of_product, ("product_id", "words", "title", "category", "brand"))
    pairs |= _columns(cohorts, of_cohort, [n for n in cohorts.column_names if n in schema.PAIRS.names])
    prompted, figures = write_prompts(
        root, schema.check(pa.table(pairs), schema.PAIRS), prompting, dry_run, tokenizer_path
    )
    names = recipe.placements
    each = pa.array(np.repeat(np.arange(len(of_product)), len(names)))
    rows = _columns(products.take(of_product), each, ("photo_uri", "photo_sha256", "mask_uri", "own_photo_uris"))
    rows |= _columns(cohorts.take(of_cohort), each, ("text",))
    rows |= _columns(prompted, each, [n for n in prompted.column_names if n in schema.REQUESTS.names])
    rows["placement"] = pa.array(list(names) * len(of_product), pa.string())
    made_of = products["made_of"].take(of_product).take(each).to_pylist()
    parts = [rows[n].to_pylist() for n in ("cohort_id", "placement", "text", "prompt", "negative_prompt")]
    rows["request_id"] = pa.array(
        [digest(*each_part, recipe_id) for each_part in zip(made_of, *parts, strict=True)], pa.string()
    )
    rows["round"] = pa.array(np.zeros(len(each), np.int32))
    rows["reject"] = pa.nulls(len(each), pa.string())
    return Planned(schema.check(pa.table(rows), schema.REQUESTS), figures, pa.table(not_painted), brand_figures)


def _columns(table: pa.Table, at: pa.Array, names: Iterable[str]) -> dict[str, pa.ChunkedArray]:
    return {name: table[name].take(at) for name in names}


def _targeted(
    products: pa.Table, cohorts: pa.Table, targeting: Targeting, rank_model: str, signing_key_env: str
) -> tuple[pa.Array, pa.Array]:
    """Index of the product and of the cohort of every pair, products in order."""
    p, c = products.num_rows, cohorts.num_rows
    if targeting.rule == "table":
        return listed(products, cohorts, targeting.table_uri, signing_key_env)
    if targeting.rule == "all" or targeting.n >= c:
        return pa.array(np.repeat(np.arange(p), c)), pa.array(np.tile(np.arange(c), p))
    from adbooster.models.clip import Clip

    ranker = Clip(local_copy(rank_model), "cpu")
    words, queries = ranker.embed_texts(products["words"].to_pylist()), ranker.embed_texts(_looked_for(cohorts))
    near = [
        np.sort(np.argsort(-(words[at : at + 4096] @ queries.T), axis=1, kind="stable")[:, : targeting.n], axis=1)
        for at in range(0, p, 4096)
    ]
    return pa.array(np.repeat(np.arange(p), targeting.n)), pa.array(np.concatenate(near).ravel())


def _looked_for(cohorts: pa.Table) -> list[str]:
    """A cohort's query, or its whole text where it has none."""
    return [
        query or text for query, text in zip(cohorts["query"].to_pylist(), cohorts["text"].to_pylist(), strict=True)
    ]


def staged_folder(run_id: str, recipe_id: str) -> str:
    """Where a run stages what it paints under a recipe; relative to the root."""
    return f"runs/{run_id}/staged/creatives-{recipe_id}"


def staged_creatives(root: Root, run_id: str, recipe_id: str) -> pa.Table:
    """What this run and unfinished runs of the same recipe have painted and not published (schema.STAGED)."""
    parts = [
        tables.read_staged(root, staged_folder(run, recipe_id), schema.STAGED)
        for run in dict.fromkeys([run_id, *tables.unfinished_runs(root)])
    ]
    painted = pa.concat_tables(parts)
    painted = painted.filter(pc.is_null(painted["reject"]))
    first: dict[tuple, int] = {}
    for i, key in enumerate(zip(painted["creative_id"].to_pylist(), painted["round"].to_pylist(), strict=True)):
        first.setdefault(key, i)
    return painted.take(pa.array(list(first.values()), pa.int64()))
