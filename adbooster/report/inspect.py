"""What a picture is, and whether it is what the tables say: `adbooster inspect`."""

import hashlib
import io
import re
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import DeltaError
from PIL import Image
from pydantic import BaseModel, computed_field

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.redaction import redact
from adbooster.pictures import compositing, cutouts, images, proof
from adbooster.pictures.cutouts import Cutout
from adbooster.pictures.layout import Box
from adbooster.provenance import credentials, xmp
from adbooster.provenance.credentials import Credentials
from adbooster.provenance.xmp import Marks
from adbooster.report.audit import MOST_VERSIONS, Audit, audit
from adbooster.storage import tables
from adbooster.storage.objects import Root

B = TypeVar("B", bytes, bytearray)
MAX_BYTES = 64 << 20
FETCH_S = 30
SLACK_DB = 0.1  # between two builds of a decoder
EXTENDED_SLACK_DB = 3.0  # scaled with what was painted beyond the creative, of which nothing is kept
SHOWN = (
    "channel",
    "slot",
    "product_id",
    "cohort_id",
    "placement",
    "made_by",
    "digital_source_type",
    "uri",
    "signed_by",
)


class Check(BaseModel):
    """One thing that was looked at; `holds` is null where there is nothing to hold."""

    name: Literal["file", "xmp", "credentials", "product"]
    holds: bool | None
    says: str


class Inspection(BaseModel):
    """A picture, what it says of itself, and what the tables say of it."""

    given: str
    what: Literal["rendition", "extension", "creative", "unknown"]
    sha256: str | None
    """null: the file is not there"""
    size_bytes: int = 0
    format: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    delivered: list[dict[str, Any]] = []
    """where a channel shows it, or shows the creative"""
    creative: Audit | None = None
    """product, cohort, recipe, prompt, weights, run and marks"""
    xmp: dict[str, str] = {}
    credentials: Credentials | None = None
    """null: the file has no C2PA manifest"""
    checks: list[Check]

    @computed_field
    @property
    def holds(self) -> bool:
        """It is known, and every check that there is something for holds."""
        return self.what != "unknown" and all(check.holds is not False for check in self.checks)


def inspect(root: Root | None, given: str, trust_anchors: str = "") -> Inspection:
    """A file, an https address or the id of a creative, against the tables and from its own bytes.

    root           null: only what the file says of itself
    trust_anchors  root certificates in PEM; with them a signed file has to be trusted, else it is enough that it is valid
    raises         ConfigError for what cannot be read
    """
    if root and re.fullmatch(r"[0-9a-f]{16}", given) and not Path(given).exists():
        return _of_creative(root, given)
    content = _fetched(given) if "://" in given else _local(given)
    sha256, said = hashlib.sha256(content).hexdigest(), _said(content)
    found = credentials.read(content, trust_anchors)
    facts = {"given": given, "xmp": {k: v for k, v in said._asdict().items() if v}, "credentials": found}
    facts |= _file_facts(content)
    if root is None:
        return Inspection(
            **facts,
            what="unknown",
            checks=[_file(False, "without --root-uri it is compared with nothing"), *_own(found)],
        )
    if rows := _rows(root, "deliveries", "sha256", sha256):
        facts |= {"what": "rendition", "delivered": _shown(rows), "creative": _known(root, rows[0])}
        there = "it is the file that is delivered" if rows[0]["live"] else "it was delivered, and is not any more"
        checks = [_file(True, there), _xmp_check(said, rows[0]), _signature_check(found, rows[0], bool(trust_anchors))]
        return Inspection(**facts, checks=[*checks, _product_check(root, rows[0]["creative_id"], rows[0], content)])
    if rows := _rows(root, "deliveries", "extended_sha256", sha256):
        facts |= {"what": "extension", "creative": _known(root, rows[0])}
        there = "it is a creative with more scene round it" + (
            "" if rows[0]["live"] else ", which is not shown any more"
        )
        size = {name: rows[0]["frame"][name] for name in ("width_px", "height_px")}
        whole = rows[0] | size | {"psnr_db": None}
        return Inspection(
            **facts, checks=[_file(True, there), _product_check(root, rows[0]["creative_id"], whole, content)]
        )
    if rows := _rows(root, "creatives", "sha256", sha256):
        facts |= {"what": "creative", "creative": _known(root, rows[0])}
        there = "it is the file of a creative" + ("" if rows[0]["live"] else ", which is not live any more")
        return Inspection(**facts, checks=[_file(True, there), _product_check(root, rows[0]["creative_id"])])
    if rows := _rows(root, "creatives", "sha256", (said.source or "").removeprefix("urn:sha256:")):
        facts["creative"] = _known(root, rows[0])
        says = "no file of these bytes is delivered; its XMP names a creative: it was altered since, or is of an earlier version"
    else:
        says = f"nothing below {root.uri} has these bytes"
    return Inspection(**facts, what="unknown", checks=[_file(False, says), *_own(found)])


def _known(root: Root, row: dict) -> Audit | None:
    """Its creative's chain; null where the history that is left does not reach back to it."""
    try:
        return audit(root, row["creative_id"])
    except ConfigError:
        return None


def _of_creative(root: Root, creative_id: str) -> Inspection:
    known = audit(root, creative_id)
    facts: dict[str, Any] = {"given": creative_id, "what": "creative", "creative": known}
    facts["delivered"] = _shown(row for row in _rows(root, "deliveries", "creative_id", creative_id) if row["live"])
    try:
        content = root.read(known.file["uri"] or "")
    except (FileNotFoundError, IsADirectoryError):
        return Inspection(**facts, sha256=None, checks=[_file(False, "its file is not stored any more")])
    facts |= _file_facts(content)
    if facts["sha256"] != known.file["sha256"]:
        return Inspection(**facts, checks=[_file(False, "its file is not what the table says: it was altered")])
    return Inspection(**facts, checks=[_file(True, "its file is what it was"), _product_check(root, creative_id)])


def _file(holds: bool, says: str) -> Check:
    return Check(name="file", holds=holds, says=says)


def _own(found: Credentials | None) -> list[Check]:
    """The check of a signature that no table knows."""
    return [] if found is None else [Check(name="credentials", holds=found.holds, says=_signature(found))]


def _xmp_check(said: Marks, row: dict) -> Check:
    """Whether the file says of itself what its row says of it."""
    wanted = {"digital_source_type": row["digital_source_type"], "source": f"urn:sha256:{row['master_sha256']}"}
    for name, value in wanted.items():
        if getattr(said, name) != value:
            return Check(
                name="xmp", holds=False, says=f"{name} is {getattr(said, name) or 'missing'}, the row says {value}"
            )
    return Check(name="xmp", holds=True, says="source type and creative are those of the row")


def _signature_check(found: Credentials | None, row: dict, anchored: bool) -> Check:
    if row["signed_by"] is None and found is None:
        return Check(name="credentials", holds=None, says="it was not signed")
    if found is None:
        return Check(name="credentials", holds=False, says="it was signed and has no manifest")
    right = found.digital_source_type == row["digital_source_type"]
    says = _signature(found) + ("" if right else f"; it says {found.digital_source_type}, which the row does not")
    trusted = found.state == "Trusted" or not anchored
    return Check(name="credentials", holds=found.holds and trusted and right, says=says)


def _signature(found: Credentials) -> str:
    by = f"signed by {found.signer or 'nobody named'} of {found.issuer or 'nobody named'}"
    return f"{found.state}, {by}" + (f" ({', '.join(found.problems)})" if found.problems else "")


def _product_check(root: Root, creative_id: str, row: dict | None = None, content: bytes = b"") -> Check:
    """Whether the product's pixels in the stored creative are the photo's, and those in a rendition the creative's.

    row, content  of a rendition (schema.DELIVERIES), and its file
    """
    try:
        holds, says = _proven(root, creative_id, row, content)
    except FileNotFoundError as e:
        holds, says = False, f"cannot be proven any more: {Path(str(e.filename or e)).name} is not stored"
    except images.UnreadableImage as e:
        holds, says = False, f"cannot be proven: {e}"
    return Check(name="product", holds=holds, says=says)


def _proven(root: Root, creative_id: str, row: dict | None, content: bytes) -> tuple[bool | None, str]:
    creatives = _rows(root, "creatives", "creative_id", creative_id)
    if not creatives:
        return False, "cannot be proven any more: the creative is not in the history that is left"
    creative = creatives[0]
    if creative["layout"] is None:
        return None, "nothing was painted: the creative is the product's own picture"
    samples = _rows(root, "samples", "photo_sha256", creative["photo_sha256"])
    sample = next((s for s in samples if s["product_id"] == creative["product_id"] and s["mask_uri"]), None)
    if sample is None:
        return False, "cannot be proven any more: its photo and mask are not in the history that is left"
    photo, stored = root.read(sample["photo_uri"]), root.read(creative["uri"])
    for named, found in (("photo", photo), ("creative", stored)):
        if hashlib.sha256(found).hexdigest() != creative["photo_sha256" if named == "photo" else "sha256"]:
            return False, f"the stored {named} is not the one that its row names"
    cutout = cutouts.cut(images.decode(photo), images.decode_mask(root.read(sample["mask_uri"])))
    master, box = images.decode(stored), Box(**creative["layout"])
    difference = proof.product_difference(master, cutout, box)
    recorded = (creative["gates"] or {}).get("product_max_diff") or 0
    if difference > recorded:
        return False, f"its pixels are up to {difference} of 255 levels from the photo's, {recorded} were recorded"
    says = (
        "every pixel of it is the photo's"
        if not difference
        else f"within {difference} of 255 levels of the photo's, as recorded"
    )
    if row is None:
        return True, says
    return _like_master(master, cutout, box, row, images.decode(content), says)


def _like_master(
    master_u8: np.ndarray, cutout: Cutout, box: Box, row: dict, shown_u8: np.ndarray, says: str
) -> tuple[bool, str]:
    """Whether a rendition's product is the creative's, as near as its row says (all of it where it is lossless)."""
    frame = Box(**row["frame"])
    height, width = master_u8.shape[:2]
    product = compositing.placed_alpha(cutout, box, (width, height))
    x, y = max(0, -frame.x_px), max(0, -frame.y_px)  # a frame may reach beyond the creative, where more was painted
    right, below = (
        max(0, end - n) for end, n in ((frame.x_px + frame.width_px, width), (frame.y_px + frame.height_px, height))
    )
    around, moved = ((y, below), (x, right)), Box(frame.x_px + x, frame.y_px + y, frame.width_px, frame.height_px)
    size = row["width_px"], row["height_px"]
    if shown_u8.shape[1::-1] != size:
        return (
            False,
            f"the file has {shown_u8.shape[1]} x {shown_u8.shape[0]} pixels, its row says {size[0]} x {size[1]}",
        )
    before = np.pad(master_u8, (*around, (0, 0)), "edge")[moved.slices]
    inside = proof.solid(images.resize(np.ascontiguousarray(np.pad(product, around)[moved.slices]), *size))
    psnr = proof.psnr_of(images.resize(np.ascontiguousarray(before), *size)[inside], shown_u8[inside])
    recorded = 99.0 if row["psnr_db"] is None else row["psnr_db"]
    slack = EXTENDED_SLACK_DB if any((x, y, right, below)) else SLACK_DB
    return psnr >= recorded - slack, f"{says}; of it in this file {psnr:.1f} dB, its row says {recorded:.1f} dB"


def _shown(rows: Iterable[dict]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in SHOWN} for row in rows]


def _rows(root: Root, table: str, column: str, value: str | None) -> list[dict]:
    """Rows with this value in the newest version that has any, each with whether that is the `live` one."""
    if not value:
        return []
    for n, version in enumerate(tables.history(root, table)[:MOST_VERSIONS]):
        try:
            if not pc.any(pc.equal(tables.read(root, table, [column], version.version)[column], value)).as_py():
                continue
            rows = tables.read(root, table, version=version.version)
        except (DeltaError, OSError, pa.ArrowException):  # past the retention of a vacuum
            break
        if found := rows.filter(pc.equal(rows[column], value)).to_pylist():
            return [row | {"live": n == 0} for row in found]
    return []


def _file_facts(content: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP"]) as opened:
            return facts | {"format": opened.format, "width_px": opened.width, "height_px": opened.height}
    except Exception:  # parsers on any bytes
        return facts


def _said(content: bytes) -> Marks:
    try:
        return xmp.read(content)
    except Exception:  # parsers on any bytes
        return Marks()


def _local(path: str) -> bytes:
    try:
        with open(path, "rb") as opened:
            return _whole(opened.read(MAX_BYTES + 1), path)
    except OSError as e:
        raise ConfigError(
            f"{path} cannot be read: {e.strerror}; give a file, an https address or the id of a creative"
        ) from e


def _whole(content: B, name: str) -> B:
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{redact(name)} has more than {MAX_BYTES >> 20} MiB, which no rendition has")
    return content


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise ConfigError(f"the address leads on to {redact(newurl)}, which is no https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetched(url: str) -> bytes:
    if not url.startswith("https://"):
        raise ConfigError(f"{redact(url)} is no https address; give one, or the path of a file")
    until, content, opener = time.monotonic() + FETCH_S, bytearray(), urllib.request.build_opener(_HttpsOnly)
    try:
        with opener.open(url, timeout=FETCH_S) as answer:
            while part := answer.read(1 << 16):
                content += part
                _whole(content, url)
                if time.monotonic() > until:
                    raise ConfigError(f"{redact(url)} took more than {FETCH_S} s")
    except (OSError, ValueError) as e:
        raise ConfigError(f"{redact(url)} cannot be fetched: {redact(str(e))}") from e
    return bytes(content)
