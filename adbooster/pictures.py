"""The stages of a picture: fetched, masked, captioned, judged. What is known and what made it has not changed is kept."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
from pydantic import Field

from adbooster import images, schema
from adbooster.changes import MadeBy, fingerprint
from adbooster.fetch import Fetch, Http, NotFetched, Photo
from adbooster.objects import Root, local_copy
from adbooster.rules import Captions, Masking, Rules
from adbooster.settings import Config

log = logging.getLogger(__name__)
UNCHANGED = "unchanged"  # travels in the reject column to skip the models; never reaches a table
BY_ALPHA = "source-alpha"  # who made a mask that came with the photo
CAPTION_PX = 1024  # longer side of what a captioner is shown
_PHOTO = ("photo_uri", "photo_sha256", "width", "height")
_MASK = schema.MASKED.names[len(schema.FETCHED) :]


class Source(Config):
    """Where photos may come from."""

    feed_uri: str
    """Relative links hang on it."""
    allowed_file_root: str = ""
    """Folder below which local pictures may lie; empty: the feed's own folder."""
    allow_private_hosts: bool = False
    """Addresses inside the network may be asked."""
    http: Http = Field(default_factory=Http)
    """How politely."""

    def fetch(self, max_bytes: int) -> Fetch:
        folder = str(Path(self.feed_uri).parent) if "://" not in self.feed_uri else ""
        allowed = self.allowed_file_root or folder
        return Fetch(self.feed_uri, Path(allowed) if allowed else None, self.http, max_bytes, self.allow_private_hosts)


class Fetcher:
    """Photos into object storage; a row of which nothing has changed is marked and costs no decoding and no model."""

    def __init__(self, root: Root, source: Source, rules: Rules, made: MadeBy):
        self.root, self.rules, self.made = root, rules, made
        self.fetch = source.fetch(int(rules.max_mb * 1e6))
        self.threads, self.decoding = ThreadPoolExecutor(8), Lock()

    def __call__(self, rows: pa.Table) -> pa.Table:
        todo = rows.to_pylist()
        photos = self.fetch.all([self._ask(row) for row in todo])
        done = list(self.threads.map(self._settle, todo, photos))
        names = [n for n in schema.FETCHED.names if n not in schema.PLANNED.names]
        columns = {n: [d.get(n) for d in done] for n in ["reject", *names]}
        return schema.extend(rows.drop_columns(["reject"]), schema.FETCHED, **columns)

    def _ask(self, row: dict) -> tuple[str, str | None, str | None]:
        """Ask for what is new since last time, where last time's photo or verdict could stand."""
        known = row["known"] or {}
        same = known.get("image_uri") == row["image_uri"] and self._stands(row, known)
        return (row["image_uri"], known["etag"], known["last_modified"]) if same else (row["image_uri"], None, None)

    def _stands(self, row: dict, known: dict) -> bool:
        """A stored photo stands; so does the verdict on one that could not be read, under the same rules."""
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
            told = {"etag": known["etag"], "last_modified": known["last_modified"], "kept": True}
            return self._finish(row, {n: known[n] for n in _PHOTO} | told)
        told = {"etag": photo.etag, "last_modified": photo.last_modified}
        sha256 = known.get("photo_sha256") if photo.content is None else hashlib.sha256(photo.content).hexdigest()
        if sha256 == known.get("photo_sha256") and self._stands(row, known):
            reject = None if known["photo_uri"] else known["reject"]
            return self._finish(row, {n: known[n] for n in _PHOTO} | told | {"reject": reject})
        return self._finish(row, self._store(row, photo.content or b"", sha256 or "") | told)

    def _store(self, row: dict, photo: bytes, sha256: str) -> dict:
        try:
            with self.decoding:  # one at a time: 64 megapixels take some hundred megabytes
                height, width = images.decode(photo).shape[:2]
        except images.UnreadableImage as e:
            log.info("cannot decode %r: %s", row["image_uri"][:200], e)
            return {"photo_sha256": sha256, "reject": "unreadable_image"}
        return dict(zip(_PHOTO, (self.root.put(photo, "photo"), sha256, width, height), strict=True))

    def _finish(self, row: dict, found: dict) -> dict:
        """With the verdict on its size, its fingerprint, and whether anything has changed at all."""
        known = row["known"] or {}
        if found.get("photo_uri") and min(found["width"], found["height"]) < self.rules.min_side_px:
            found["reject"] = "image_too_small"
        found["kept"] = found.get("kept", False)
        found["fingerprint"] = fingerprint(row, found.get("photo_sha256") or found.get("reject"), self.made)
        same = all(found.get(n) == known.get(n) for n in ("fingerprint", "etag", "last_modified"))
        if same and known.get("retired_at") is None and not found["kept"]:
            found["reject"] = UNCHANGED
        return found


class Masker:
    """Product masks into object storage, and what they are judged by; a photo's own alpha goes before the model."""

    def __init__(self, root: Root, model: str, how: Masking, made: MadeBy, runs_on: tuple[str, int]):
        self.root, self.model, self.how, self.made, self.runs_on = root, model, how, made, runs_on

    @cached_property
    def net(self):
        from adbooster.mask import U2Net

        return U2Net(local_copy(self.model), *self.runs_on)

    def __call__(self, rows: pa.Table) -> pa.Table:
        done = [self._mask(row) for row in rows.select(["photo_uri", "photo_sha256", "known"]).to_pylist()]
        return schema.extend(rows, schema.MASKED, **{n: [d[n] for d in done] for n in _MASK})

    def _mask(self, row: dict) -> dict:
        known = row["known"] or {}
        same_photo = known.get("mask_uri") and known["photo_sha256"] == row["photo_sha256"]
        if same_photo and known["mask_by"] in (self.made.mask, BY_ALPHA):
            return known
        from adbooster.mask import measure

        photo, alpha = images.decode_with_alpha(self.root.read(row["photo_uri"]))
        given = images.informative(alpha)
        mask = self.net.mask(photo, self.how) if given is None else given
        made_by = self.made.mask if given is None else BY_ALPHA
        return {"mask_uri": self.root.put(images.encode_mask(mask), "png"), "mask_by": made_by, **measure(photo, mask)}


class Captioner:
    """One line of text a picture."""

    def __init__(self, root: Root, model: str, how: Captions, made: MadeBy, runs_on: tuple[str, int]):
        self.root, self.model, self.how, self.made, self.runs_on = root, model, how, made, runs_on

    @cached_property
    def net(self):
        from adbooster.caption import Blip

        return Blip(local_copy(self.model), *self.runs_on)

    def __call__(self, rows: pa.Table) -> pa.Table:
        todo = rows.select(["photo_uri", "photo_sha256", "known"]).to_pylist()
        captions = [self._known(row) for row in todo]
        missing = [i for i, caption in enumerate(captions) if caption is None]
        if missing:
            said = self.net.captions([self._shown(todo[i]["photo_uri"]) for i in missing], self.how)
            for i, caption in zip(missing, said, strict=True):
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
        return None if row["caption"] else "caption_empty"
