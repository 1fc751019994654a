"""Requests: usable products x targeted cohorts x placements, each with its prompt and its name."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest, digests
from adbooster.contracts.recipe import Recipe, recipe_id
from adbooster.contracts.text import clean, interest
from adbooster.experiments.config import Experiment, Holdout
from adbooster.experiments.holdout import held_out
from adbooster.experiments.prompter import ArmPrompter
from adbooster.painting.brand_rules import BrandRules, Judgement
from adbooster.painting.config import PaintingConfig, Targeting
from adbooster.painting.targeting import Listed
from adbooster.prompts.config import Prompting
from adbooster.prompts.templates import product_words
from adbooster.storage import tables
from adbooster.storage.buckets import Part, Snapshot
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

MAX_TEXT = 1000  # characters of a cohort's text; the scoring CLIP reads 77 tokens of it
PRODUCTS = pa.schema(
    [("available", pa.bool_())]
    + [(name, pa.string()) for name in ("product_id", "category", "brand", "title", "caption", "words")]
    + [(name, pa.string()) for name in ("photo_uri", "photo_sha256", "mask_uri", "made_of")]
    + [("own_photo_uris", pa.list_(pa.string()))]
)


_OF_SAMPLES = (
    "product_id",
    "available",
    "category",
    "brand",
    "title",
    "caption",
    "photo_uri",
    "photo_sha256",
    "mask_uri",
)


class Planned(NamedTuple):
    """The requests of a part.

    requests   schema.REQUESTS
    forbidden  pairs (product_id, cohort_id) that the targeting wants and brand rules forbid
    held_out   pairs that both want, and that keep the original picture; with `available` as of the product
    sold_out   ids of products that cannot be bought
    """

    requests: pa.Table
    forbidden: pa.Table
    held_out: pa.Table
    sold_out: pa.Array


class Wanted(NamedTuple):
    """The pairs of a part.

    products              that can be painted (PRODUCTS)
    of_product, of_cohort  index of the product and of the cohort of every pair that is painted, products in order
    painted               these pairs (product_id, cohort_id, and whether the product can be bought: available)
    forbidden, held_out   as in Planned
    """

    products: pa.Table
    of_product: pa.Array
    of_cohort: pa.Array
    painted: pa.Table
    forbidden: pa.Table
    held_out: pa.Table


def usable_products(samples: pa.Table, by_category: bool = False) -> pa.Table:
    """Products that can be painted (PRODUCTS): the main sample's facts, and the photos of all its pictures.

    samples      rows of schema.SAMPLES with all pictures of their products
    by_category  whether the category decides how a product stands, and so is part of what `made_of` names
    """
    rows = samples.filter(pc.and_(pc.is_null(samples["reject"]), pc.is_null(samples["retired_at"])))
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
    if config.score == "blend":
        models.append(f"reward {content_hash(local_copy(config.reward))} x {config.reward_weight}")
    models += [f"usability {content_hash(local_copy(config.usability))}"] if config.usability else []
    return weights, recipe_id(config.recipe, [weights, *models])


class Pairs:
    """Which products are painted for which cohorts, part by part of the products.

    signing_key_env  as for read_targeting
    brand            rules and the day they are applied on: a pair that they forbid is not painted
    holdout          what keeps the original picture; not painted either
    raises ConfigError if there is no usable product or no cohort
    """

    def __init__(
        self,
        root: Root,
        targeting: Targeting,
        rank_model: str,
        signing_key_env: str = "",
        brand: tuple[BrandRules, date] | None = None,
        holdout: Holdout | None = None,
    ):
        self.samples = Snapshot(root, "samples", tables.version(root, "samples"))
        self.holdout = holdout or Holdout()
        usable = self.products = 0
        if not self.samples.rows:
            raise ConfigError(f"{root.uri}/tables/samples has no usable main picture; run jobs.prepare first")
        self.cohorts = usable_cohorts(root)
        self.targeted = Targeted(self.cohorts, targeting, rank_model, signing_key_env)
        for rows in self.samples.scan(["product_id", "role", "reject", "retired_at"]):
            mains = _usable_mains(rows)
            usable, self.products = usable + len(mains), self.products + self.targeted.of(mains)
        if not usable:
            raise ConfigError(f"{root.uri}/tables/samples has no usable main picture; run jobs.prepare first")
        if not self.products:
            raise ConfigError(f"the targeting table {targeting.table_uri} names no usable product")
        self.judgement = Judgement(brand[0], self.cohorts, brand[1]) if brand else None

    @property
    def most(self) -> int:
        """As many as there are, or more."""
        return self.products * self.targeted.most_cohorts

    def of(self, part: Part, by_category: bool = False) -> Wanted:
        """by_category  as for usable_products"""
        products = usable_products(self.samples.read(part, [*_OF_SAMPLES, "reject", "retired_at", "role"]), by_category)
        at = self.targeted.pairs(products)
        forbidden = pa.array(np.zeros(len(at[0]), bool))
        if self.judgement:
            forbidden = pa.array(self.judgement.forbidden(products, *at))
        allowed, not_allowed = _divided(at, forbidden)
        names = self._named(products, allowed)
        kept = held_out(names["product_id"], names["cohort_id"], self.holdout)
        painted, original = _divided(allowed, kept)
        return Wanted(products, *painted, *(self._named(products, at) for at in (painted, not_allowed, original)))

    def _named(self, products: pa.Table, at: tuple[pa.Array, pa.Array]) -> pa.Table:
        """product_id, cohort_id and available of pairs."""
        of_products = _columns(products, at[0], ("product_id", "available"))
        return pa.table(of_products | _columns(self.cohorts, at[1], ("cohort_id",)))


def _divided(at: tuple[pa.Array, pa.Array], mask: pa.Array) -> list[tuple[pa.Array, pa.Array]]:
    """Pairs of which the mask does not hold, and those of which it does."""
    return [(at[0].filter(of), at[1].filter(of)) for of in (pc.invert(mask), mask)]


class Planner:
    """Names the requests of a night, in the parts that its products fall into.

    dry_run, tokenizer_path, experiments  as for ArmPrompter; signing_key_env, brand, holdout  as for Pairs
    raises ConfigError if there is no usable product or no cohort
    """

    def __init__(
        self,
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
        holdout: Holdout | None = None,
        experiments: Sequence[Experiment] = (),
    ):
        self.recipe, self.recipe_id = recipe, recipe_id
        self.pairs = Pairs(root, targeting, rank_model, signing_key_env, brand, holdout)
        self.cohorts, self.judgement = self.pairs.cohorts, self.pairs.judgement
        self.prompter = ArmPrompter(root, prompting, experiments, dry_run, tokenizer_path)

    @property
    def most_requests(self) -> int:
        """As many as there are without brand rules and holdout, or more."""
        return self.pairs.most * len(self.recipe.placements)

    def plan(self, part: Part) -> Planned:
        """The requests of the products in a part, in an order that follows from their names alone, product by product."""
        products, of_product, of_cohort, _, forbidden, kept = self.pairs.of(part, bool(self.recipe.stands))
        cohorts = self.cohorts
        pairs = _columns(products, of_product, ("product_id", "words", "title", "category", "brand"))
        pairs |= _columns(cohorts, of_cohort, [n for n in cohorts.column_names if n in schema.PAIRS.names])
        prompted = self.prompter.write(schema.check(pa.table(pairs), schema.PAIRS))
        names = self.recipe.placements
        each = pa.array(np.repeat(np.arange(len(of_product)), len(names)))
        of_product, of_cohort = of_product.take(each), of_cohort.take(each)
        rows = _columns(products, of_product, ("photo_uri", "photo_sha256", "mask_uri", "own_photo_uris"))
        rows |= _columns(cohorts, of_cohort, ("text",))
        rows |= _columns(prompted, each, [n for n in prompted.column_names if n in schema.REQUESTS.names])
        rows["placement"] = pa.array(list(names) * len(prompted), pa.string())
        parts = [rows[n] for n in ("cohort_id", "placement", "text", "prompt", "negative_prompt")]
        rows["request_id"] = digests(products["made_of"].take(of_product), *parts, self.recipe_id)
        rows["round"] = pa.array(np.zeros(len(each), np.int32))
        rows["again_for"] = rows["reject"] = pa.nulls(len(each), pa.string())
        sold_out = products["product_id"].filter(pc.equal(products["available"], False)).combine_chunks()
        return Planned(schema.check(pa.table(rows), schema.REQUESTS), forbidden, kept, sold_out)


def _usable_mains(rows: pa.Table) -> pa.ChunkedArray:
    """Ids of products with a main picture that can be painted."""
    usable = pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))
    return rows["product_id"].filter(pc.and_(usable, pc.equal(rows["role"], "main")))


def _columns(table: pa.Table, at: pa.Array, names: Iterable[str]) -> dict[str, pa.ChunkedArray]:
    return {name: table[name].take(at) for name in names}


class Targeted:
    """Which of the cohorts products are painted for.

    signing_key_env  as for read_targeting
    """

    def __init__(self, cohorts: pa.Table, targeting: Targeting, rank_model: str, signing_key_env: str = ""):
        self.cohorts, self.targeting, self.rank_model = cohorts, targeting, rank_model
        table = targeting.rule == "table"
        self.listed = Listed(cohorts, targeting.table_uri, signing_key_env) if table else None
        chosen = targeting.rule == "top_n" and targeting.n < cohorts.num_rows
        self.most_cohorts = targeting.n if chosen else cohorts.num_rows
        self.ranker = self.queries = None
        if chosen:
            from adbooster.models.clip import Clip

            self.ranker = Clip(local_copy(rank_model), "cpu")
            self.queries = self.ranker.embed_texts(_looked_for(cohorts))

    def of(self, product_ids: pa.ChunkedArray) -> int:
        """How many of these products are painted for any cohort."""
        if not self.listed:
            return len(product_ids)
        return pc.sum(pc.is_in(product_ids, self.listed.products.dictionary)).as_py() or 0

    def pairs(self, products: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Index of the product and of the cohort of every pair, products in order."""
        p, c, n = products.num_rows, self.cohorts.num_rows, self.most_cohorts
        if self.listed:
            return self.listed.pairs(products)
        if self.ranker is None or self.queries is None:
            return pa.array(np.repeat(np.arange(p), c)), pa.array(np.tile(np.arange(c), p))
        if not p:
            return pa.array([], pa.int64()), pa.array([], pa.int64())
        words = self.ranker.embed_texts(products["words"].to_pylist())
        near = [
            np.sort(np.argsort(-(words[at : at + 4096] @ self.queries.T), axis=1, kind="stable")[:, :n], axis=1)
            for at in range(0, p, 4096)
        ]
        return pa.array(np.repeat(np.arange(p), n)), pa.array(np.concatenate(near).ravel())


def _looked_for(cohorts: pa.Table) -> list[str]:
    """A cohort's query, or its whole text where it has none."""
    return [
        query or text for query, text in zip(cohorts["query"].to_pylist(), cohorts["text"].to_pylist(), strict=True)
    ]


def staged_folder(run_id: str, recipe_id: str) -> str:
    """Where a run stages what it paints under a recipe; relative to the root."""
    return f"runs/{run_id}/staged/creatives-{recipe_id}"


def staged_folders(root: Root, run_id: str, recipe_id: str) -> list[str]:
    """Those of this run and of unfinished runs, this run's first."""
    return [staged_folder(run, recipe_id) for run in dict.fromkeys([run_id, *tables.unfinished_runs(root)])]


def staged_creatives(root: Root, run_id: str, recipe_id: str, columns: Iterable[str] = ()) -> pa.Table:
    """What this run and unfinished runs of the same recipe have painted and not published (schema.STAGED).

    columns  only these
    """
    wanted = pa.schema([schema.STAGED.field(name) for name in columns]) if columns else schema.STAGED
    parts = [tables.read_staged(root, folder, wanted) for folder in staged_folders(root, run_id, recipe_id)]
    return painted_once(pa.concat_tables(parts))


def painted_once(rows: pa.Table) -> pa.Table:
    """Staged rows that are creatives, the first of each creative and round: two runs may have painted the same."""
    rows = rows.filter(pc.is_null(rows["reject"]))
    keys = pa.table({"creative_id": rows["creative_id"], "round": rows["round"], "at": np.arange(rows.num_rows)})
    first = keys.group_by(["creative_id", "round"]).aggregate([("at", "min")])["at_min"]
    return rows.take(first.combine_chunks().sort())
