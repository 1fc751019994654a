"""Inputs of measurements: products with own pictures, cohorts with texts, live creatives, the catalog's scenes."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.text import interest
from adbooster.measure.config import CohortText, OwnPictures
from adbooster.storage import tables
from adbooster.storage.objects import Root


def own_pictures(root: Root) -> dict[str, OwnPictures]:
    """By product, its usable pictures; products without a usable main one are left out."""
    columns = ["product_id", "role", "photo_uri", "mask_uri", "background", "reject", "retired_at"]
    rows = tables.read(root, "samples", columns)
    rows = rows.filter(pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))).sort_by("photo_uri")
    products: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"photo_uri": None, "neutral_uris": [], "contextual_uris": []}
    )
    for row in rows.to_pylist():
        product = products[row["product_id"]]
        kind = "contextual_uris" if row["background"] == "scene" else "neutral_uris"
        product[kind].append(row["photo_uri"])
        if row["role"] == "main":
            product |= {"photo_uri": row["photo_uri"], "mask_uri": row["mask_uri"]}
    return {name: OwnPictures(**product) for name, product in products.items() if product["photo_uri"]}


def cohort_texts(root: Root) -> dict[str, CohortText]:
    """The family and text of each cohort, by its id."""
    rows = tables.read(root, "cohorts", ["cohort_id", "family", "query", "context"]).to_pylist()
    return {
        r["cohort_id"]: CohortText(family=r["family"], text=interest(r["query"] or "", r["context"] or ""))
        for r in rows
    }


def pictures_to_measure(
    creatives: pa.Table, products: Mapping[str, OwnPictures], cohorts: Mapping[str, CohortText], revision: str
) -> pa.Table:
    """Live creatives (schema.CREATIVES, rank 0) as schema.PICTURES_TO_MEASURE; without those of products or cohorts that are gone.

    revision  of the models that measure: it is part of a measurement's name
    """
    rows = []
    for row in creatives.select(
        [n for n in schema.PICTURES_TO_MEASURE.names if n in schema.CREATIVES.names]
    ).to_pylist():
        product, cohort = products.get(row["product_id"]), cohorts.get(row["cohort_id"])
        if product and cohort:
            look_id = digest(row["creative_id"], row["uri"], cohort["text"], *_own(product), revision)
            rows.append(row | product | cohort | {"look_id": look_id})
    return schema.fill(pa.Table.from_pylist(rows, schema.PICTURES_TO_MEASURE), schema.PICTURES_TO_MEASURE)


def catalog_scenes(products: Mapping[str, OwnPictures], revision: str, most: int) -> pa.Table:
    """The catalog's own pictures in a scene as schema.PICTURES_TO_MEASURE, at most `most`, chosen by hash."""
    uris = {uri: name for name, product in products.items() for uri in product["contextual_uris"]}
    rows = [{"look_id": digest("scene", uri, revision), "product_id": name, "uri": uri} for uri, name in uris.items()]
    some = sorted(rows, key=lambda row: row["look_id"])[:most]
    return schema.fill(pa.Table.from_pylist(some, schema.PICTURES_TO_MEASURE), schema.PICTURES_TO_MEASURE)


def _own(product: OwnPictures) -> list[str]:
    return [product["photo_uri"], *product["neutral_uris"], "|", *product["contextual_uris"]]
