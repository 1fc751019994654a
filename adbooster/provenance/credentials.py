"""Content credentials (C2PA): a signed manifest in a file of where it comes from, and what the manifest in a file says.

Source: C2PA Technical Specification 2.4, through c2pa-rs. Nothing here asks a network, a timestamp authority apart.
"""

import io
import json
from functools import cached_property
from typing import Any

import c2pa
from cryptography.hazmat.primitives import serialization
from PIL import Image
from pydantic import BaseModel
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from adbooster import __version__
from adbooster.contracts.errors import ConfigError, SigningError
from adbooster.contracts.redaction import redact
from adbooster.provenance import signing as signers
from adbooster.provenance.signing import Signing
from adbooster.provenance.xmp import VOCABULARY

SPARE_BYTES = 64  # by which one manifest may be longer than another: counters and lengths
ATTEMPTS = 3  # to sign a file where a program or a timestamp authority is asked
_READABLE = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF")  # by Pillow and by c2pa-rs
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}  # a picture's XMP may name any address
# Thumbnails would add some 300 kB. What is signed is verified when it is read back, so not here as well.
_WRITING = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False} | _OFFLINE}


class Credentials(BaseModel):
    """What a file's manifest says, and whether it holds."""

    state: str
    """Trusted: the signer's certificate leads to a trust anchor; Valid: it is whole, its signer unknown; Invalid: see `problems`"""
    problems: list[str] = []
    """codes of C2PA"""
    signer: str | None = None
    issuer: str | None = None
    """the organisation in the signer's certificate"""
    serial_number: str | None = None
    algorithm: str | None = None
    signed_at: str | None = None
    """by a timestamp authority; null: it was not asked"""
    generator: str | None = None
    digital_source_type: str | None = None
    """code of IPTC's vocabulary"""
    actions: list[str] = []
    placed: list[str] = []
    """what was placed in it: urn:sha256:<hash of the product's photo>"""

    @property
    def holds(self) -> bool:
        return self.state in ("Valid", "Trusted")


def read(image: bytes, trust_anchors: str = "") -> Credentials | None:
    """What the manifest in a file says; None if it has none.

    trust_anchors  root certificates in PEM under which a signer is trusted; empty: none is
    """
    settings: dict[str, Any] = {"verify": dict(_OFFLINE)}
    if trust_anchors:
        settings["trust"] = {"trust_anchors": trust_anchors}
    try:
        reader = c2pa.Reader.try_create(_mime(image), io.BytesIO(image), context=c2pa.Context.from_dict(settings))
        if reader is None:
            return None
        with reader:
            return _credentials(json.loads(reader.json()))
    except c2pa.C2paError as e:
        return Credentials(state="Invalid", problems=[str(e)])


def _credentials(found: dict) -> Credentials:
    manifest = found["manifests"][found["active_manifest"]]
    signature = manifest.get("signature_info") or {}
    actions = [a for one in manifest["assertions"] if "c2pa.actions" in one["label"] for a in one["data"]["actions"]]
    kinds = [a["digitalSourceType"] for a in actions if a.get("digitalSourceType")]
    generators = manifest.get("claim_generator_info") or [{}]
    return Credentials(
        state=found["validation_state"],
        problems=[problem["code"] for problem in found.get("validation_status", [])],
        signer=signature.get("common_name"),
        issuer=signature.get("issuer"),
        serial_number=signature.get("cert_serial_number"),
        algorithm=signature.get("alg"),
        signed_at=signature.get("time"),
        generator=" ".join(str(generators[0][n]) for n in ("name", "version") if generators[0].get(n)) or None,
        digital_source_type=kinds[0].removeprefix(VOCABULARY) if kinds else None,
        actions=[action["action"] for action in actions],
        placed=[one["instance_id"] for one in manifest.get("ingredients", []) if one.get("instance_id")],
    )


class FileSigner:
    """Puts signed manifests into files; made where files are made, because it holds the key."""

    def __init__(self, signing: Signing):
        """raises ConfigError if the certificates or the key cannot be read; SigningError if they do not fit each other"""
        self._chain = signers.read_chain(signing)
        self._signing = signing
        self._context = c2pa.Context.from_dict(_WRITING)
        self._error: SigningError | None = None
        try:
            self._signer = self._by_command() if signing.command else self._by_key()
        except c2pa.C2paError as e:
            raise SigningError(f"the certificates and the key make no signer of {signing.algorithm}: {e}") from None

    def _by_key(self) -> c2pa.Signer:
        key = signers.read_key(self._signing).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        tsa_url = self._signing.tsa_url
        info = c2pa.C2paSignerInfo(self._signing.algorithm, self._chain.pem, key, tsa_url and tsa_url.encode())
        return c2pa.Signer.from_info(info)

    def _by_command(self) -> c2pa.Signer:
        def sign(content: bytes) -> bytes:
            try:
                return signers.ask(self._signing, self._chain.leaf, content)
            except SigningError as e:  # c2pa-rs would say only that there is no signature
                self._error = e
                return b""

        kind = c2pa.C2paSigningAlg[self._signing.algorithm.upper()]
        return c2pa.Signer.from_callback(sign, kind, self._chain.pem.decode(), self._signing.tsa_url)

    @property
    def signed_by(self) -> str:
        """SHA-256 of the signer's certificate, in hex."""
        return self._chain.fingerprint

    @cached_property
    def reserve_bytes(self) -> int:
        """By how much a file grows, measured on a small one; a photo with a manifest of its own adds that to it."""
        tiny = _tiny()
        return len(self.sign(tiny, tiny, "0" * 64, "compositeWithTrainedAlgorithmicMedia")) - len(tiny) + SPARE_BYTES

    def sign(self, image: bytes, photo: bytes, photo_sha256: str, digital_source_type: str) -> bytes:
        """The file with a manifest: a picture was created, of this source type, and the product's photo placed in it.

        image    JPEG, PNG or WebP; its pixels and its XMP stay as they are
        photo    the product's photo as it is stored; where c2pa-rs cannot read its format its hash alone is named
        raises   SigningError if it cannot be signed
        """
        retrying = Retrying(
            retry=retry_if_exception_type(SigningError),
            stop=stop_after_attempt(ATTEMPTS if self._signing.command or self._signing.tsa_url else 1),
            wait=wait_exponential(0.2, max=5),
            reraise=True,
        )
        return retrying(self._signed, image, photo, photo_sha256, digital_source_type)

    def _signed(self, image: bytes, photo: bytes, photo_sha256: str, digital_source_type: str) -> bytes:
        kind, signed = _mime(image), io.BytesIO()
        self._error = None
        with self._builder(kind, photo, f"urn:sha256:{photo_sha256}", digital_source_type) as builder:
            try:
                builder.sign(self._signer, kind, io.BytesIO(image), signed)
            except c2pa.C2paError as e:
                raise (self._error or SigningError(f"c2pa cannot sign: {redact(str(e))}")) from None
        return signed.getvalue()

    def _builder(self, kind: str, photo: bytes, photo_urn: str, digital_source_type: str) -> c2pa.Builder:
        placed = {"relationship": "componentOf", "instance_id": photo_urn}
        created = {"action": "c2pa.created", "digitalSourceType": VOCABULARY + digital_source_type}
        actions = [created, {"action": "c2pa.placed", "parameters": {"ingredientIds": [photo_urn]}}]
        manifest = {
            "claim_generator_info": [{"name": "AdBooster", "version": __version__}],
            "format": kind,
            "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
        }
        builder = c2pa.Builder(manifest, self._context)
        try:
            builder.add_ingredient(placed, _mime(photo), io.BytesIO(photo))
        except c2pa.C2paError:
            builder.close()
            builder = c2pa.Builder(manifest | {"ingredients": [placed | {"format": _mime(photo)}]}, self._context)
        return builder


def _mime(image: bytes) -> str:
    """By its content; `application/octet-stream` for what is no picture."""
    try:
        with Image.open(io.BytesIO(image), formats=_READABLE) as opened:
            return Image.MIME.get(opened.format or "", "application/octet-stream")
    except Exception:  # parsers on any bytes
        return "application/octet-stream"


def _tiny() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(out, "JPEG")
    return out.getvalue()


def check_signing(signing: Signing) -> None:
    """Sign a tiny picture and read it back.

    raises  ConfigError for whatever would keep files from being signed and trusted
    """
    signers.check(signing)
    tiny = _tiny()
    try:
        signed = FileSigner(signing).sign(tiny, tiny, "0" * 64, "compositeWithTrainedAlgorithmicMedia")
    except SigningError as e:
        raise ConfigError(f"a trial signature failed: {e}") from e
    found = read(signed, signers.read_anchors(signing.trust_anchors))
    if found is None or not found.holds:
        raise ConfigError(f"a trial signature is not valid: {', '.join(found.problems) if found else 'none is there'}")
    if signing.trust_anchors and found.state != "Trusted":
        raise ConfigError(
            f"what is signed with {signing.chain or signing.chain_env} is not trusted under signing.trust_anchors "
            f"{signing.trust_anchors}: {', '.join(found.problems)}"
        )
