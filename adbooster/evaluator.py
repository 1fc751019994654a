"""The stage that looks at stored pictures, and what it is given to look at."""

import logging
from collections import defaultdict

import pyarrow as pa
import pyarrow.compute as pc

from adbooster import images, layout, looks, schema, tables
from adbooster.eyes import Eyes, Judging
from adbooster.objects import Root
from adbooster.pools import Pool, dataset, preflight, stage_parts, through
from adbooster.prompts import interest
from adbooster.recipe import digest

log = logging.getLogger(__name__)
KEPT = [n for n in schema.TO_SEE.names if n in schema.LOOKS.names]


class Evaluator:
    """Reads stored creatives back and measures them; of a row without a cohort, a catalog's scene, the features alone."""

    def __init__(self, root: Root, config: Judging):
        self.root, self.eyes = root, Eyes(root, config)

    def __call__(self, rows: pa.Table) -> pa.Table:
        return schema.fill(
            pa.Table.from_pylist([self._look(row) for row in rows.to_pylist()], schema.LOOKS), schema.LOOKS
        )

    def _look(self, row: dict) -> dict:
        shared = {name: row[name] for name in KEPT}
        try:
            return shared | self._measured(row)
        except FileNotFoundError:
            return shared | {"reject": "missing_image"}
        except images.UnreadableImage:
            return shared | {"reject": "unreadable_image"}

    def _measured(self, row: dict) -> dict:
        picture = images.decode(self.root.read(row["uri"]))
        if row["cohort_id"] is None:
            return {"features": self.eyes.features(picture).tolist()}
        found = self.eyes.scores([picture], row["text"]) | self.eyes.baselines(row)
        if row["fallback"] or row["layout"] is None:
            return found | {"product_max_diff": 0, "features": self.eyes.features(picture).tolist()}
        cutout = self.eyes.cutout(row["photo_uri"], row["mask_uri"])
        return found | self.eyes.figures(picture, cutout, layout.Box(**row["layout"]), row["text"])


def own_pictures(root: Root) -> dict[str, dict]:
    """By product: photo_uri and mask_uri of its main picture, neutral_uris (plain ground) and contextual_uris (a scene)."""
    columns = ["product_id", "role", "photo_uri", "mask_uri", "background", "reject", "retired_at"]
    rows = tables.read(root, "samples", columns)
    rows = rows.filter(pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))).sort_by("photo_uri")
    found: dict[str, dict] = defaultdict(lambda: {"photo_uri": None, "neutral_uris": [], "contextual_uris": []})
    for row in rows.to_pylist():
        product = found[row["product_id"]]
        kind = "contextual_uris" if row["background"] == "scene" else "neutral_uris"
        product[kind].append(row["photo_uri"])
        if row["role"] == "main":
            product |= {"photo_uri": row["photo_uri"], "mask_uri": row["mask_uri"]}
    return {name: product for name, product in found.items() if product["photo_uri"]}


def cohorts(root: Root) -> dict[str, dict]:
    """By cohort: its family and its text, Q and C as scored against."""
    rows = tables.read(root, "cohorts", ["cohort_id", "family", "query", "context"]).to_pylist()
    return {
        r["cohort_id"]: {"family": r["family"], "text": interest(r["query"] or "", r["context"] or "")} for r in rows
    }


def to_see(creatives: pa.Table, products: dict[str, dict], known: dict[str, dict], revision: str) -> pa.Table:
    """Live creatives (schema.CREATIVES, rank 0) as schema.TO_SEE; those of products or cohorts that are gone left out."""
    rows = []
    for row in creatives.select([n for n in schema.TO_SEE.names if n in schema.CREATIVES.names]).to_pylist():
        product, cohort = products.get(row["product_id"]), known.get(row["cohort_id"])
        if product and cohort:
            look_id = digest(row["creative_id"], row["uri"], cohort["text"], *_own(product), revision)
            rows.append(row | product | cohort | {"look_id": look_id})
    return schema.fill(pa.Table.from_pylist(rows, schema.TO_SEE), schema.TO_SEE)


def scenes(products: dict[str, dict], revision: str, most: int) -> pa.Table:
    """The catalog's own pictures in a scene as schema.TO_SEE, at most `most`, chosen by hash."""
    uris = {uri: name for name, product in products.items() for uri in product["contextual_uris"]}
    rows = [{"look_id": digest("scene", uri, revision), "product_id": name, "uri": uri} for uri, name in uris.items()]
    some = sorted(rows, key=lambda row: row["look_id"])[:most]
    return schema.fill(pa.Table.from_pylist(some, schema.TO_SEE), schema.TO_SEE)


def _own(product: dict) -> list[str]:
    return [product["photo_uri"], *product["neutral_uris"], "|", *product["contextual_uris"]]


def seen(root: Root, config: Judging, rows: pa.Table, pool: Pool) -> pa.Table:
    """The looks (schema.LOOKS) of schema.TO_SEE: those taken before, and the rest taken now by a pool of actors."""

    def take(left: pa.Table) -> None:
        preflight({"look": pool})
        log.info("looking at %d of %d pictures", left.num_rows, rows.num_rows)
        ds = through(dataset(left, pool.batch), Evaluator, pool, schema.LOOKS, root=root, config=config)
        stage_parts(ds, root, looks.folder(config.run_id))

    return looks.looks(root, config.run_id, rows, take)
