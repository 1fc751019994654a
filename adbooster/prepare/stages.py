"""The stages of a picture: fetched, shrunk for the networks, captioned, segmented, refined, judged.

Parts with unchanged inputs and models are kept.
"""

import hashlib
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.engine.stage_process import in_network, loading
from adbooster.models.preprocessing import Preprocessing, shrink
from adbooster.models.settings import Captions, Masking, MaskNetwork
from adbooster.pictures import images
from adbooster.prepare.changes import MadeBy, fingerprint
from adbooster.prepare.config import Rules, Source
from adbooster.prepare.fetch import NotFetched, Photo, open_fetch
from adbooster.storage.mask_models import mask_model
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

if TYPE_CHECKING:
    from adbooster.models.blip import Blip
    from adbooster.models.saliency import SaliencyNet

log = logging.getLogger(__name__)
UNCHANGED = "unchanged"  # travels in the reject column to skip the models; never reaches a table
BY_ALPHA = "source-alpha"  # `mask_by` of a mask that came with the photo
_PHOTO = ("photo_uri", "photo_sha256", "width", "height")
_MASK = [n for n in schema.MASKED.names if n not in schema.CAPTIONED.names]
_INPUTS = ["photo_uri", "photo_sha256", "known"]


class Fetcher:
    """Photos into object storage; a row of which nothing has changed is marked and costs no decoding and no model."""

    def __init__(self, root: Root, source: Source, rules: Rules, made: MadeBy):
        self.root, self.rules, self.made = root, rules, made
        self.fetch = open_fetch(source, int(rules.max_mb * 1e6))
        self.threads, self.decoding = ThreadPoolExecutor(8), Lock()

    def __call__(self, rows: pa.Table) -> pa.Table:
        todo = rows.to_pylist()
        photos = self.fetch.all([self._ask(row) for row in todo])
        done = list(self.threads.map(self._settle, todo, photos))
        names = [n for n in schema.FETCHED.names if n not in schema.PLANNED.names]
        columns = {n: [d.get(n) for d in done] for n in ["reject", *names]}
        return schema.extend(rows.drop_columns(["reject"]), schema.FETCHED, **columns)

    def _ask(self, row: dict) -> tuple[str, str | None, str | None]:
        """Request only what is new since last time, where last time's photo or verdict could still be valid."""
        known = row["known"] or {}
        same = known.get("image_uri") == row["image_uri"] and self._still_valid(row, known)
        return (row["image_uri"], known["etag"], known["last_modified"]) if same else (row["image_uri"], None, None)

    def _still_valid(self, row: dict, known: dict) -> bool:
        """A stored photo is still valid; so is the verdict on one that could not be read, under the same rules."""
        if known.get("photo_uri"):
            return True
        sha256 = known.get("photo_sha256")
        return bool(sha256) and fingerprint(row, sha256, self.made) == known["fingerprint"]

    def _settle(self, row: dict, photo: Photo | NotFetched) -> dict:
        known = row["known"] or {}
        if isinstance(photo, NotFetched):
            stored = known.get("photo_uri") and known["image_uri"] == row["image_uri"]
            if not (photo.passing and stored):
                return self._finish(row, {"reject": photo.reject})
            validators = {"etag": known["etag"], "last_modified": known["last_modified"], "kept": True}
            return self._finish(row, {n: known[n] for n in _PHOTO} | validators)
        validators = {"etag": photo.etag, "last_modified": photo.last_modified}
        sha256 = known.get("photo_sha256") if photo.content is None else hashlib.sha256(photo.content).hexdigest()
        if sha256 == known.get("photo_sha256") and self._still_valid(row, known):
            reject = None if known["photo_uri"] else known["reject"]
            return self._finish(row, {n: known[n] for n in _PHOTO} | validators | {"reject": reject})
        return self._finish(row, self._store(row, photo.content or b"", sha256 or "") | validators)

    def _store(self, row: dict, photo: bytes, sha256: str) -> dict:
        try:
            with self.decoding:  # one at a time: 64 megapixels take some hundred megabytes
                height, width = images.decode(photo).shape[:2]
        except images.UnreadableImage as e:
            log.info("cannot decode %r: %s", row["image_uri"][:200], e)
            return {"photo_sha256": sha256, "reject": "unreadable_image"}
        return dict(zip(_PHOTO, (self.root.put(photo, "photo"), sha256, width, height), strict=True))

    def _finish(self, row: dict, values: dict) -> dict:
        """The row with the verdict on its size, its fingerprint, and whether anything has changed at all."""
        known = row["known"] or {}
        if values.get("photo_uri") and min(values["width"], values["height"]) < self.rules.min_side_px:
            values["reject"] = "image_too_small"
        values["kept"] = values.get("kept", False)
        values["fingerprint"] = fingerprint(row, values.get("photo_sha256") or values.get("reject"), self.made)
        same = all(values.get(n) == known.get(n) for n in ("fingerprint", "etag", "last_modified"))
        if same and known.get("retired_at") is None and not values["kept"]:
            values["reject"] = UNCHANGED
        return values


class Shrinker:
    """What the networks are shown of a photo; nothing of one whose mask, or caption, is known or comes with the photo."""

    def __init__(self, root: Root, network: Preprocessing, caption_px: tuple[int, int], made: MadeBy):
        """network: with its size; caption_px: height and width"""
        assert network.size_px is not None
        self.root, self.network, self.caption_px, self.made = root, network, caption_px, made
        self.network_px = network.size_px

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._shrink(row) for row in rows.select(_INPUTS).to_pylist()]
        columns = {n: [d.get(n) for d in done] for n in ("reject", "network_u8", "caption_u8")}
        return schema.extend(rows.drop_columns(["reject"]), schema.SHRUNK, **columns)

    def _shrink(self, row: dict) -> dict:
        wants_mask, wants_caption = _known_mask(row, self.made) is None, _known_caption(row, self.made) is None
        if not wants_mask and not wants_caption:
            return {}
        try:
            photo, alpha = images.decode_with_alpha(self.root.read(row["photo_uri"]))
        except images.UnreadableImage as e:  # stored when the limits were wider
            log.info("cannot decode %s any more: %s", row["photo_uri"], e)
            return {"reject": "unreadable_image"}
        shown = {}
        if wants_mask and images.informative(alpha) is None:
            shown["network_u8"] = shrink(photo, self.network, self.network_px).tobytes()
        if wants_caption:
            height, width = self.caption_px
            shown["caption_u8"] = images.resize(photo, width, height, bicubic=True).tobytes()
        return shown


class Captioner:
    """One line of text a picture."""

    def __init__(self, model: str, how: Captions, made: MadeBy, runs_on: tuple[str, int], caption_px: tuple[int, int]):
        self.model, self.how, self.made, self.runs_on, self.caption_px = model, how, made, runs_on, caption_px

    @cached_property
    def net(self) -> "Blip":
        with loading():
            from adbooster.models.blip import Blip

            return Blip(local_copy(self.model), *self.runs_on)

    def __call__(self, rows: pa.Table) -> pa.Table:
        shown = [x and np.frombuffer(x, np.uint8).reshape(*self.caption_px, 3) for x in rows["caption_u8"].to_pylist()]
        captions = [_known_caption(row, self.made) for row in rows.select(_INPUTS).to_pylist()]
        missing = [i for i, caption in enumerate(captions) if caption is None]
        if missing:
            net = self.net
            with in_network():
                new_captions = net.captions([shown[i] for i in missing], self.how)
            for i, caption in zip(missing, new_captions, strict=True):
                captions[i] = caption
        return schema.extend(rows, schema.CAPTIONED, caption=captions, caption_by=[self.made.caption] * len(captions))


class Segmenter:
    """The mask network's maps of probabilities, and nothing but the network."""

    def __init__(self, model: str, network: MaskNetwork, runs_on: tuple[str, int]):
        self.model, self.network, self.runs_on = model, network, runs_on

    @cached_property
    def net(self) -> "SaliencyNet":
        with loading():
            from adbooster.models.saliency import SaliencyNet

            model = mask_model(self.model, self.network)
            return SaliencyNet(model.path, *self.runs_on, model.how)

    def __call__(self, rows: pa.Table) -> pa.Table:
        shown = rows["network_u8"].drop_null()
        maps = iter(self._maps(shown) if len(shown) else ())
        found = [next(maps) if there else None for there in pc.is_valid(rows["network_u8"]).to_pylist()]
        return schema.extend(rows, schema.SEGMENTED, probability=found)

    def _maps(self, shown: pa.ChunkedArray) -> list[bytes]:
        net = self.net
        x_u8 = np.stack([np.frombuffer(x.as_buffer(), np.uint8).reshape(3, *net.size_px) for x in shown])
        with in_network():
            maps = net.maps(x_u8)
        return [_to_npy(m) for m in maps]


class Refiner:
    """Product masks at the photo's size into object storage, and their measurements; a photo's own alpha comes first."""

    def __init__(self, root: Root, how: Masking, made: MadeBy):
        self.root, self.how, self.made = root, how, made

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._mask(row) for row in rows.select([*_INPUTS, "probability"]).to_pylist()]
        columns = {n: [d.get(n) for d in done] for n in ["reject", *_MASK]}
        return schema.extend(rows.drop_columns(["reject"]), schema.MASKED, **columns)

    def _mask(self, row: dict) -> dict:
        if known := _known_mask(row, self.made):
            return {n: known[n] for n in _MASK}
        from adbooster.pictures.matting import Refined, measure, product_mask

        photo, alpha = images.decode_with_alpha(self.root.read(row["photo_uri"]))
        if (given := images.informative(alpha)) is not None:
            made_by, (mask, how, unsure) = BY_ALPHA, Refined(given, "alpha")
        else:
            probability = np.load(io.BytesIO(row["probability"]))
            refined = product_mask(photo, probability, self.how.refine_px, self.how.solve_px, self.how.holes)
            made_by, (mask, how, unsure) = self.made.mask, refined
        uri = self.root.put(images.encode_mask(mask), "png")
        named = {"mask_uri": uri, "mask_by": made_by, "mask_how": how, "mask_unsure_share": unsure}
        return named | measure(photo, mask)


def _to_npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _known_mask(row: dict, made: MadeBy) -> dict | None:
    """What is known of a row (schema.KNOWN) if its mask is still valid: of the same photo, by the same maker or its alpha."""
    known = row["known"] or {}
    same = known.get("mask_uri") and known["photo_sha256"] == row["photo_sha256"]
    return known if same and known["mask_by"] in (made.mask, BY_ALPHA) else None


def _known_caption(row: dict, made: MadeBy) -> str | None:
    known = row["known"] or {}
    same = known.get("photo_sha256") == row["photo_sha256"] and known.get("caption_by") == made.caption
    return known["caption"] if same else None


class Judge:
    """Rejects by the rules, and whether the surroundings are plain or a scene; from measurements, no picture is read."""

    def __init__(self, rules: Rules):
        self.rules = rules

    def __call__(self, rows: pa.Table) -> pa.Table:
        todo = rows.select(["role", "caption", *_MASK]).to_pylist()
        plain = [row["outside_deviation"] < self.rules.plain_deviation for row in todo]
        return schema.extend(
            rows.drop_columns(["reject"]),
            schema.PREPARED,
            reject=[self._reject(row) for row in todo],
            background=["plain" if p else "scene" for p in plain],
        )

    def _reject(self, row: dict) -> str | None:
        rules, main = self.rules, row["role"] == "main"
        if row["mask_area_share"] < rules.min_area_share:
            return "mask_empty"
        if row["mask_area_share"] > rules.max_area_share:
            return "mask_full"
        if main and row["mask_border_share"] > rules.max_border_share:
            return "mask_touches_border"
        if main and row["mask_pieces"] > rules.max_pieces:
            return "mask_in_pieces"
        if main and (row["mask_unsure_share"] or 0) > rules.max_unsure_share:
            return "mask_unsure"
        return None if row["caption"] else "caption_empty"
