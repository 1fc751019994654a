"""Which creatives may be extended, what is known of their extensions, and what is asked of those that are not there."""

import json
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
_FACTS = ("extension_id", "extended_uri", "extended_sha256", "seam")


class Extensions:
    """The extensions of a root's creatives under settings.

    live    schema.DELIVERIES
    run_id  a run that has painted: what failed in it counts as well, and nothing more is asked for; empty: none has
    """

    def __init__(self, config: DeliverConfig, extend: Extension, root: Root, live: pa.Table, run_id: str = ""):
        self.extend, self.over = extend, bool(run_id)
        self.painting = painting_of(config, extend, root)
        self.recipe_id = revisions(self.painting)[1]
        self.known = {row["extension_id"]: row for row in known_extensions(root, live, run_id).to_pylist()}

    def name(self, creative: dict, frame: Box) -> str:
        """Names an extension by all that decides its pixels: the creative's file, what painted it, the frame."""
        settings = [vars(frame), self.extend.edge_px, self.extend.attempts, self.extend.max_seam]
        return digest("extension", _CODE, creative["sha256"], creative["recipe_id"] or "", json.dumps(settings))

    def of(self, creative: dict, frame: Box) -> dict[str, Any]:
        """The extension (schema.EXTENSIONS): with its file, with a reject word, or with neither, to be painted."""
        name = self.name(creative, frame)
        if name in self.known:
            return self.known[name]
        word = OTHER_RECIPE if creative["recipe_id"] != self.recipe_id else "failed_extension" if self.over else None
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
            "scale": self.painting.recipe.paint_size(creative["placement"])[0] / creative["width"],
            "reject": None,
        }


def painting_of(config: DeliverConfig, extend: Extension, root: Root) -> PaintingConfig:
    """The settings that extensions are painted with: with the weights of the live creatives, where the root has them."""
    painting = extend.painting(config.root_uri, config.run_id)
    revision = tables.metadata(root, "creatives").get("weights_revision")
    own = f"weights/{revision}"
    if revision and root.exists(own) and content_hash(local_copy(painting.weights)) != revision:
        return painting.model_copy(update={"weights": f"{root.uri}/{own}"})
    return painting


def staged_folder(run_id: str) -> str:
    """Where a run stages extensions; relative to the root."""
    return f"runs/{run_id}/{FOLDER}"


def known_extensions(root: Root, live: pa.Table, run_id: str = "") -> pa.Table:
    """Extensions that are delivered, or staged and not published (schema.EXTENSIONS), each once.

    run_id  a run that has painted: what failed in it counts as well; of other runs a reason that may pass does not
    """
    tried = live.filter(pc.is_valid(live["extension_id"]))
    delivered = schema.fill(
        tried.select([*_FACTS, "extension_reject"]).rename_columns([*_FACTS, "reject"]), schema.EXTENSIONS
    )
    others = [run for run in root.folders("runs") if run != run_id and not root.exists(f"runs/{run}/report.json")]
    staged = [tables.read_staged(root, staged_folder(run), schema.EXTENSIONS) for run in others]
    found = pa.concat_tables([delivered, *staged])
    found = found.filter(pc.or_(pc.is_valid(found["extended_uri"]), pc.is_in(found["reject"], pa.array(LASTING))))
    if run_id:
        found = pa.concat_tables([found, tables.read_staged(root, staged_folder(run_id), schema.EXTENSIONS)])
    first: dict[str, int] = {}
    files = found["extended_uri"].to_pylist()
    for i, name in enumerate(found["extension_id"].to_pylist()):
        if name not in first or (files[first[name]] is None and files[i] is not None):
            first[name] = i
    return found.take(pa.array(list(first.values()), pa.int64()))
