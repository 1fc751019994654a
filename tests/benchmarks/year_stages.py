"""In place of the stages of prepare and generate: rows as their last stage stages them, and constant files; no Ray, no network."""

import hashlib
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.engine import cluster
from adbooster.engine.staging import Staged
from adbooster.generate import rounds
from adbooster.painting.requests import staged_folder
from adbooster.pictures import images
from adbooster.prepare import changes
from adbooster.prepare import job as prepare_job
from adbooster.storage import tables
from adbooster.storage.objects import Root

SIDE_PX, PART_ROWS = 48, 64  # rows of a staged part
PICTURE_U8 = np.full((SIDE_PX, SIDE_PX, 3), 200, np.uint8)
PHOTO, CREATIVE = images.encode_mask(PICTURE_U8), images.encode_lossless(PICTURE_U8)
NOTE = (
    f"painting, fetching and masking are replaced: every photo, mask and creative is a constant picture of {SIDE_PX} px, one "
    "file a product, photo and recipe"
)


def spent() -> tuple[float, float]:
    """Seconds by the clock, and of processor time of this process."""
    return time.monotonic(), time.process_time()


class Killed(BaseException):
    """The driver is gone."""


class Stages:
    """While it is installed, prepare and generate run without stages. `crash` is where the next night is stopped."""

    def __init__(self) -> None:
        self.crash = ""
        self.seconds = self.cpu_s = 0.0
        """that went into making what is staged, which a driver does not do"""
        cluster.start = lambda: None
        prepare_job.preflight = lambda _: None
        prepare_job._through_stages = self._prepare
        rounds._stage = self._paint
        rounds.stage_times.start = lambda: "no actor"
        rounds.stage_times.write = lambda *_: {}
        commit = tables.commit

        def stopped(root: Root, name: str, *args: Any) -> int:
            if name == "creatives" and self.crash == "committing":
                raise Killed
            return commit(root, name, *args)

        tables.commit = stopped

    def _not_the_drivers(self, began: tuple[float, float]) -> None:
        self.seconds, self.cpu_s = (
            known + now - then for known, now, then in zip((self.seconds, self.cpu_s), spent(), began, strict=True)
        )

    def _prepare(self, *asked: Any) -> Staged:
        """Of every picture that is new or changed: fetched, masked, captioned and judged.

        asked  the plan of the whole feed, or a night that has it and the plan of a part
        """
        began, plan, found = spent(), getattr(asked[0], "plan", asked[0]), asked[-1].changes
        at = np.flatnonzero((found.state != 2) & pc.is_null(found.wanted["reject"]).to_numpy())
        mask_uri = _stored(plan.root, PHOTO, "png")
        rows = [
            self._sample(plan.root, row, found.made, mask_uri) for row in found.wanted.take(pa.array(at)).to_pylist()
        ]
        done = pa.Table.from_pylist(rows, schema.PREPARED)
        _stage(plan.root, changes.staged_folder(plan.config.run_id, plan.base), done)
        self._not_the_drivers(began)
        if self.crash == "prepared":
            raise Killed
        return Staged([done], "no stage ran\n")

    def _sample(self, root: Root, row: dict, made: changes.MadeBy, mask_uri: str) -> dict:
        uri = _stored(root, PHOTO + f"{row['product_id']} {row['image_uri']}".encode(), "png")
        sha256 = uri[11:75]
        measured = {"mask_area_share": 0.4, "mask_border_share": 0.0, "mask_pieces": 1, "outside_deviation": 0.0}
        by = {"mask_by": made.mask, "caption_by": made.caption, "mask_uri": mask_uri, "mask_how": "matting"}
        caption = row["title"].split(",")[0].lower()
        photo = {"photo_uri": uri, "photo_sha256": sha256, "width": SIDE_PX, "height": SIDE_PX, "etag": sha256[:16]}
        more = {"kept": False, "background": "plain", "fingerprint": changes.fingerprint(row, sha256, made)}
        return dict.fromkeys(schema.PREPARED.names) | row | photo | measured | by | more | {"caption": caption}

    def _paint(self, config: Any, root: Root, night: Any, rows: pa.Table, *_: Any) -> tuple[Counter[str], dict]:
        began = spent()
        painted = rows.slice(0, rows.num_rows // 2) if self.crash == "painted" else rows
        done = _painted(root, config.run_id, night, painted)
        _stage(root, staged_folder(config.run_id, night.recipe_id), done)
        self._not_the_drivers(began)
        if self.crash == "painted":
            raise Killed
        return Counter(), {}


def _painted(root: Root, run_id: str, night: Any, rows: pa.Table) -> pa.Table:
    """One creative for each request, as the finisher would give it (schema.STAGED)."""
    n, ids = rows.num_rows, rows["request_id"].combine_chunks()
    photos = rows["photo_uri"].combine_chunks().dictionary_encode()
    contents = [CREATIVE + f"{uri} {night.recipe_id}".encode() for uri in photos.dictionary.to_pylist()]
    files, sizes = [_stored(root, content, "webp") for content in contents], list(map(len, contents))
    uris = pa.array(files, pa.string()).take(photos.indices)
    gates = pa.array([{"product_max_diff": 0}], schema.GATES)
    layout = pa.array([dict.fromkeys(("x_px", "y_px", "width_px", "height_px"), 8)], schema.LAYOUT)
    same = {"rank": 0, "recipe_id": night.recipe_id, "weights_revision": night.weights_revision, "fallback": False}
    same |= {"clip_score": 0.3, "neutral_score": 0.2, "margin": 0.1, "width": SIDE_PX, "height": SIDE_PX, "gpu_s": 0.3}
    same |= {"seed": 1, "run_id": run_id, "paint_batch": 16}
    columns: dict[str, Any] = {name: rows[name] for name in schema.STAGED.names if name in rows.column_names}
    columns |= {name: pa.repeat(pa.scalar(value, schema.STAGED.field(name).type), n) for name, value in same.items()}
    columns |= {"gates": pa.repeat(gates[0], n), "layout": pa.repeat(layout[0], n), "uri": uris}
    columns |= {
        "creative_id": pc.utf8_slice_codeunits(ids, 0, 16),
        "sha256": pc.utf8_slice_codeunits(uris, 11, 75),
        "size_bytes": pa.array(sizes, pa.int64()).take(photos.indices),
        "background_phash": pc.utf8_slice_codeunits(ids, 16, 32),
        "background_simhash": ids,
    }
    return schema.fill(pa.table(columns), schema.STAGED)


def _stage(root: Root, folder: str, rows: pa.Table) -> None:
    """Parts as the stages' workers write them, named by their content: not a driver's requests."""
    os.makedirs(root.path(folder), exist_ok=True)
    for start in range(0, rows.num_rows, PART_ROWS):
        sink = pa.BufferOutputStream()
        pap.write_table(rows.slice(start, PART_ROWS), sink)
        content = sink.getvalue().to_pybytes()
        path = Path(root.path(f"{folder}/{hashlib.sha256(content).hexdigest()[:32]}.parquet"))
        path.write_bytes(content)
        _dated(path)


def _stored(root: Root, content: bytes, extension: str) -> str:
    """An object as a worker puts it; one that is there already gets a new date."""
    sha256 = hashlib.sha256(content).hexdigest()
    uri = f"objects/{sha256[:2]}/{sha256}.{extension}"
    path = Path(root.path(uri))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    _dated(path)
    return uri


def _dated(path: Path) -> None:
    """A file gets the simulated time, which the kernel does not know."""
    now = time.time()
    os.utime(path, (now, now))
