"""Which creatives may be extended, what is known of their extensions, and what is asked of those that are not there."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.deliver import extension
from adbooster.deliver.config import DeliverConfig, Extension
from adbooster.painting.config import PaintingConfig
from adbooster.painting.requests import revisions
from adbooster.pictures.layout import Box
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

FOLDER = "staged/extensions"
_CODE = "1"  # raise it to paint every extension again
# The same frame of the same creative would end in these again; what ended in another word is tried again.
LASTING = ("visible_seam", "second_copy", "people_not_asked", "text_in_scene", "unsafe")
OTHER_RECIPE = "other_recipe"


class Models:
    """What extensions are painted with, hashed once, where a frame is asked for that is not known; `tried`: what a run asked for."""

    def __init__(self, config: DeliverConfig, extend: Extension, root: Root, live: pa.Table):
        """live: the column weights_revision of the live creatives"""
        self.config, self.extend, self.root = config, extend, root
        self.live, self.tried = live, set[str]()

    @cached_property
    def painting(self) -> PaintingConfig:
        """The settings that extensions are painted with: with the weights of the live creatives, where the root has them."""
        painting = self.extend.painting(self.config.root_uri, self.config.run_id)
        counts = pc.value_counts(self.live["weights_revision"].drop_null()).to_pylist()
        revision = max(counts, key=lambda c: (c["counts"], c["values"]), default={"values": None})["values"]
        own = f"weights/{revision}"
        if revision and self.root.exists(own) and content_hash(local_copy(painting.weights)) != revision:
            return painting.model_copy(update={"weights": self.root.address(own)})
        return painting

    @cached_property
    def recipe_id(self) -> str:
        return revisions(self.painting)[1]


class Extensions:
    """The extensions of a root's creatives under settings.

    live    schema.DELIVERIES
    run_id  a run that has painted: what failed in it counts as well; empty: none has
    """

    def __init__(self, models: Models, live: pa.Table, run_id: str = ""):
        self.models, self.extend = models, models.extend
        self.table = known_extensions(models.root, live, run_id)
        self.at = {name: i for i, name in enumerate(self.table["extension_id"].to_pylist())}

    def name(self, creative: dict, frame: Box) -> str:
        """Names an extension by all that decides its pixels: the creative's file, what painted it, the frame."""
        settings = [vars(frame), self.extend.edge_px, self.extend.attempts, self.extend.max_seam]
        return digest("extension", _CODE, creative["sha256"], creative["recipe_id"] or "", json.dumps(settings))

    def of(self, creative: dict, frame: Box) -> dict[str, Any]:
        """The extension (schema.EXTENSIONS): with its file, with a reject word, or with neither, to be painted."""
        name = self.name(creative, frame)
        if (at := self.at.get(name)) is not None:
            return self.table.slice(at, 1).to_pylist()[0]
        other = creative["recipe_id"] != self.models.recipe_id
        word = OTHER_RECIPE if other else "failed_extension" if name in self.models.tried else None
        return dict.fromkeys(schema.EXTENSIONS.names) | {"extension_id": name, "reject": word}

    def request(self, creative: dict, frame: Box) -> dict[str, Any]:
        """As in schema.EXTENSION_REQUESTS; it is painted at the scale that the creative was."""
        size = creative["width"], creative["height"]
        same = {name: creative[name] for name in ("mask_uri", "layout", "prompt", "negative_prompt", "text")}
        return same | {
            "extension_id": self.name(creative, frame),
            "master_uri": creative["uri"],
            "master_sha256": creative["sha256"],
            "frame": vars(frame),
            "kept": vars(extension.kept(size, frame, Box(**creative["layout"]), self.extend.edge_px)),
            "scale": self.models.painting.recipe.paint_size(creative["placement"])[0] / creative["width"],
            "reject": None,
        }


def staged_folder(run_id: str) -> str:
    """Where a run stages extensions; relative to the root."""
    return f"runs/{run_id}/{FOLDER}"


def known_extensions(root: Root, live: pa.Table, run_id: str = "") -> pa.Table:
    """Extensions that are delivered, or staged and not published (schema.EXTENSIONS), each once.

    live    schema.DELIVERIES
    run_id  as of `known_files`
    """
    delivered = schema.fill(live.filter(pc.is_valid(live["extended_uri"])), schema.EXTENSIONS)
    refused = [pc.list_flatten(live[name]) for name in ("refused_extensions", "refused_why")]
    refused = schema.fill(pa.table(refused, ["extension_id", "reject"]), schema.EXTENSIONS)
    return known_files(root, pa.concat_tables([delivered, refused]), "extension_id", staged_folder, LASTING, run_id)


def known_files(
    root: Root,
    delivered: pa.Table,
    key: str,
    folder_of: Callable[[str], str],
    lasting: Sequence[str],
    run_id: str = "",
    wanted: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Rows of files that are delivered, or staged in the folders of unfinished runs, each once; one with a file before one without.

    key      what names a file; only those `wanted`, where these are given
    lasting  reject words that hold for other runs as well
    run_id   a run that has made files: what failed in it counts, whatever its word
    """
    staged = [
        tables.read_staged(root, folder_of(run), delivered.schema) for run in tables.unfinished_runs(root, run_id)
    ]
    found = pa.concat_tables([delivered, *staged])
    found = found.filter(pc.or_(pc.is_null(found["reject"]), pc.is_in(found["reject"], pa.array(lasting))))
    if run_id:
        found = pa.concat_tables([found, tables.read_staged(root, folder_of(run_id), delivered.schema)])
    if wanted is not None:
        found = found.filter(pc.is_in(found[key], wanted))
    first: dict[str, int] = {}
    rejects = found["reject"].to_pylist()
    for i, name in enumerate(found[key].to_pylist()):
        if name not in first or (rejects[first[name]] is not None and rejects[i] is None):
            first[name] = i
    return found.take(pa.array(list(first.values()), pa.int64()))
