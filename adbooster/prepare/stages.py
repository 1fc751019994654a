"""The stages of a picture: fetched, masked, captioned, judged. Parts with unchanged inputs and models are kept."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.engine.stage_process import loading
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
CAPTION_PX = 1024  # longer side of what a captioner is shown
_PHOTO = ("photo_uri", "photo_sha256", "width", "height")
_MASK = schema.MASKED.names[len(schema.FETCHED) :]


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


class Masker:
    """Product masks into object storage, and their measurements; a photo's own alpha is used before the model."""

    def __init__(
        self,
        root: Root,
        model: str,
        how: Masking,
        made: MadeBy,
        runs_on: tuple[str, int],
        network: MaskNetwork | None = None,
    ):
        self.root, self.model, self.how, self.made, self.runs_on = root, model, how, made, runs_on
        self.network = network or MaskNetwork()

    @cached_property
    def net(self) -> "SaliencyNet":
        with loading():
            from adbooster.models.saliency import SaliencyNet

            model = mask_model(self.model, self.network)
            return SaliencyNet(model.path, *self.runs_on, model.how)

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._mask(row) for row in rows.select(["photo_uri", "photo_sha256", "known"]).to_pylist()]
        columns = {n: [d.get(n) for d in done] for n in ["reject", *_MASK]}
        return schema.extend(rows.drop_columns(["reject"]), schema.MASKED, **columns)

    def _mask(self, row: dict) -> dict:
        known = row["known"] or {}
        same_photo = known.get("mask_uri") and known["photo_sha256"] == row["photo_sha256"]
        if same_photo and known["mask_by"] in (self.made.mask, BY_ALPHA):
            return {n: known[n] for n in _MASK}
        from adbooster.pictures.matting import Refined, measure

        try:
            photo, alpha = images.decode_with_alpha(self.root.read(row["photo_uri"]))
        except images.UnreadableImage as e:  # stored when the limits were wider
            log.info("cannot decode %s any more: %s", row["photo_uri"], e)
            return {"reject": "unreadable_image"}
        given = images.informative(alpha)
        mask, how, unsure = self.net.mask(photo, self.how) if given is None else Refined(given, "alpha")
        made_by = self.made.mask if given is None else BY_ALPHA
        uri = self.root.put(images.encode_mask(mask), "png")
        named = {"mask_uri": uri, "mask_by": made_by, "mask_how": how, "mask_unsure_share": unsure}
        return named | measure(photo, mask)


class Captioner:
    """One line of text a picture."""

    def __init__(self, root: Root, model: str, how: Captions, made: MadeBy, runs_on: tuple[str, int]):
        self.root, self.model, self.how, self.made, self.runs_on = root, model, how, made, runs_on

    @cached_property
    def net(self) -> "Blip":
        with loading():
            from adbooster.models.blip import Blip

            return Blip(local_copy(self.model), *self.runs_on)

    def __call__(self, rows: pa.Table) -> pa.Table:
        todo = rows.select(["photo_uri", "photo_sha256", "known"]).to_pylist()
        captions = [self._known(row) for row in todo]
        missing = [i for i, caption in enumerate(captions) if caption is None]
        if missing:
            new_captions = self.net.captions([self._shown(todo[i]["photo_uri"]) for i in missing], self.how)
            for i, caption in zip(missing, new_captions, strict=True):
                captions[i] = caption
        return schema.extend(rows, schema.CAPTIONED, caption=captions, caption_by=[self.made.caption] * len(todo))

    def _known(self, row: dict) -> str | None:
        known = row["known"] or {}
        same = known.get("photo_sha256") == row["photo_sha256"] and known.get("caption_by") == self.made.caption
        return known["caption"] if same else None

    def _shown(self, photo_uri: str) -> np.ndarray:
        photo = images.decode(self.root.read(photo_uri))
        height, width = photo.shape[:2]
        scale = min(1.0, CAPTION_PX / max(height, width))
        return images.resize(photo, max(1, round(width * scale)), max(1, round(height * scale)))


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
