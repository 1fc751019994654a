"""tables/vectors: CLIP's vectors of stored creatives and of texts, each embedded once a model, by a pool of actors."""

import logging
from functools import lru_cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.settings import Pool, Uri
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.models.clip import Clip
from adbooster.painting.placing import read_cutout
from adbooster.pictures import images, layout, scenes
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
PROGRESS_S = 30  # between two lines of progress in the log
FACTS = [n for n in schema.VECTORS.names if n in schema.CREATIVES.names]


def vector_id(creative_id: str, sha256: str, model: str) -> str:
    """The name of a creative's vectors: of its file, by a model (content hash)."""
    return digest("creative", creative_id, sha256, model)


def text_id(text: str, model: str) -> str:
    return digest("text", text, model)


class Embedder:
    """Embeds stored pictures, whole and without their products, and texts: schema.TO_EMBED to schema.VECTORS."""

    def __init__(self, root: Root, rank_model: Uri, device: str, threads: int):
        self.root, self.ranker = root, Clip(local_copy(rank_model), device, threads)
        self.cutout = lru_cache(32)(partial(read_cutout, root))

    def __call__(self, rows: pa.Table) -> pa.Table:
        return schema.fill(
            pa.Table.from_pylist([self._embedded(row) for row in rows.to_pylist()], schema.VECTORS), schema.VECTORS
        )

    def _embedded(self, row: dict) -> dict:
        shared = {name: row[name] for name in schema.VECTORS.names if name in row}
        if row["creative_id"] is None:
            return shared | {"vector": self.ranker.embed_texts([row["text"]])[0].tolist()}
        try:
            picture = images.decode(self.root.read(row["uri"]))
        except FileNotFoundError:
            return shared | {"reject": "missing_image"}
        except images.UnreadableImage:
            return shared | {"reject": "unreadable_image"}
        vector, *of_scene = self.ranker.embed_images([picture, *self._scenes(row, picture)]).tolist()
        return shared | {"vector": vector, "scene_vector": of_scene[0] if of_scene else None}

    def _scenes(self, row: dict, picture_u8: np.ndarray) -> list[np.ndarray]:
        """The picture without its product, where the photo that it was cut from is known and can be read."""
        if row["photo_uri"] is None or row["mask_uri"] is None or row["layout"] is None:
            return []
        box = layout.Box(**row["layout"])
        alpha = np.zeros(picture_u8.shape[:2], np.uint8)
        try:
            product = self.cutout(row["photo_uri"], row["mask_uri"])
        except (FileNotFoundError, images.UnreadableImage):
            return []
        alpha[box.slices] = product.scaled(box.width_px, box.height_px).alpha
        return [scenes.scene_only(picture_u8, alpha)]


def embed(root: Root, run_id: str, rank_model: Uri, device: str, threads: int, rows: pa.Table, pool: Pool) -> pa.Table:
    """The vectors (schema.VECTORS) that rows of schema.TO_EMBED name: stored, or else embedded now and stored.

    What cannot be read is left out; what a killed run embedded is used.
    """
    known = _known(root, run_id, rows["vector_id"])
    left = rows.filter(pc.invert(pc.is_in(rows["vector_id"], known["vector_id"])))
    if left.num_rows:
        preflight({"embed": pool})
        log.info("embedding %d of %d pictures and texts", left.num_rows, rows.num_rows)
        init = {"root": root, "rank_model": rank_model, "device": device, "threads": threads}
        failures = Failures(root, run_id, "failed_measure")
        ds = through(dataset(left, pool.batch), Embedder, pool, schema.VECTORS, failures, **init)
        with Progress("embedding", left.num_rows, PROGRESS_S, root) as progress:
            stage_parts(ds, root, _folder(run_id), progress=progress)
        known = _known(root, run_id, rows["vector_id"])
    base = tables.version(root, "vectors")
    stored = tables.read(root, "vectors", ["vector_id"], version=base)
    new = known.filter(pc.invert(pc.is_in(known["vector_id"], stored["vector_id"])))
    if new.num_rows:
        tables.merge(root, "vectors", new, "vector_id", base, {"run_id": run_id, "job": "learn"})
    return known


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/staged/vectors"


def _known(root: Root, run_id: str, wanted: pa.ChunkedArray) -> pa.Table:
    """One row a vector that is wanted, from the table, this run and runs that were killed; none that was rejected."""
    runs = [run_id, *tables.unfinished_runs(root, run_id)]
    staged = [tables.read_staged(root, _folder(run), schema.VECTORS) for run in runs]
    stored = tables.read(root, "vectors", where=pc.is_in(pc.field("vector_id"), wanted.combine_chunks()))
    found = pa.concat_tables([stored, *staged])
    found = found.filter(pc.and_(pc.is_in(found["vector_id"], wanted), pc.is_null(found["reject"])))
    first: dict[str, int] = {}
    for i, name in enumerate(found["vector_id"].to_pylist()):
        first.setdefault(name, i)
    return found.take(pa.array(list(first.values()), pa.int64()))
