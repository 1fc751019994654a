"""Who signs: certificates and a key that settings name and never hold, checked before any file is made."""

import subprocess
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple, Self

import fsspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID as EKU
from pydantic import Field, model_validator

from adbooster.contracts.errors import ConfigError, SigningError
from adbooster.contracts.redaction import redact
from adbooster.contracts.settings import Config, SecretName, Uri, secret_of

Algorithm = Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"]
MAX_PEM = 1 << 18  # bytes of a file of certificates or a key
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
_CURVES = {"es256": ("secp256r1", 32), "es384": ("secp384r1", 48), "es512": ("secp521r1", 66)}
# Purposes that c2pa-rs takes for a signer: e-mail, documents (RFC 9336), C2PA's own claim signing.
_PURPOSES = {EKU.EMAIL_PROTECTION.dotted_string, "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"}


class Signing(Config):
    """How files are signed (C2PA). The key is read where files are made, on every node, and is in no setting."""

    chain: Uri = ""
    """Path or address of the certificates in PEM, the signer's first, then those that issued it."""
    chain_env: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Instead of `chain`: environment variable that holds them."""
    key_file: Uri = ""
    """Path of the signer's private key, PEM without password."""
    key_env: SecretName = ""
    """Instead of `key_file`: environment variable that holds the key, PEM."""
    command: tuple[str, ...] = ()
    """Instead of a key: a program and its arguments that sign, for a KMS or HSM: the bytes to be signed on stdin, the signature
    alone on stdout (of es...: r and s one after another, or DER)."""
    command_timeout_s: float = Field(default=20, gt=0)
    """Seconds that `command` may take."""
    algorithm: Algorithm = "es256"
    """How it signs; the key must be of that kind."""
    tsa_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] | None = None
    """Address of an RFC 3161 timestamp authority, asked once a file; null: files are valid only as long as their certificate."""
    trust_anchors: Uri = ""
    """Path or address of root certificates in PEM: files are delivered only if they are trusted under these when they are read
    back. Empty: it is enough that they are valid."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.chain) == bool(self.chain_env):
            raise ValueError("give the certificates once: chain or chain_env")
        if sum(map(bool, (self.key_file, self.key_env, self.command))) != 1:
            raise ValueError("give the key once: key_file, key_env or command")
        return self


class Chain(NamedTuple):
    """Certificates, the signer's first."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        return self.certificates[0]

    @property
    def pem(self) -> bytes:
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in self.certificates)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the signer's certificate, in hex."""
        return self.leaf.fingerprint(hashes.SHA256()).hex()


def read_chain(signing: Signing) -> Chain:
    """raises ConfigError if the certificates cannot be read"""
    if signing.chain_env:
        text, where = secret_of(signing.chain_env, "signing.chain_env").encode(), f"environment {signing.chain_env}"
    else:
        text, where = _read(signing.chain, "signing.chain"), f"signing.chain {signing.chain}"
    return Chain(_certificates(text, where))


def read_anchors(uri: str) -> str:
    """Root certificates as PEM; empty where there is no address.

    raises  ConfigError if they cannot be read
    """
    if not uri:
        return ""
    return Chain(_certificates(_read(uri, "trust_anchors"), f"trust_anchors {uri}")).pem.decode()


def _certificates(text: bytes, where: str) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(text))
    except ValueError:
        raise ConfigError(f"{where} holds no certificates in PEM (-----BEGIN CERTIFICATE-----)") from None


def _read(uri: str, setting: str) -> bytes:
    try:
        with fsspec.open(uri, "rb") as opened:
            content: bytes = opened.read(MAX_PEM + 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, ValueError, ImportError) as e:
        raise ConfigError(f"{setting} {redact(uri)} cannot be read: {redact(str(e))}") from e
    if len(content) > MAX_PEM:
        raise ConfigError(f"{setting} {uri} has more than {MAX_PEM} bytes, which no PEM of certificates has")
    return content


def check(signing: Signing) -> None:
    """raises ConfigError for certificates, a key or a program that no file could be signed with now; signs nothing yet"""
    for given in (*signing.command, signing.tsa_url or ""):
        if redact(given) != given:
            raise ConfigError(
                f"signing holds a secret in {redact(given)}; settings are stored: give it to the program by other ways"
            )
    chain = read_chain(signing)
    _check_chain(signing, chain)
    read_anchors(signing.trust_anchors)
    if signing.command:
        return
    if _public(read_key(signing).public_key()) != _public(chain.leaf.public_key()):
        raise ConfigError(f"{_key_name(signing)} is not the key of the certificate {_name(chain.leaf)}")


def _check_chain(signing: Signing, chain: Chain) -> None:
    now = datetime.now(UTC)
    for certificate in chain.certificates:
        if now > certificate.not_valid_after_utc:
            raise ConfigError(
                f"the certificate {_name(certificate)} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            )
        if now < certificate.not_valid_before_utc:
            raise ConfigError(
                f"the certificate {_name(certificate)} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            )
    for one, above in zip(chain.certificates, chain.certificates[1:], strict=False):
        try:
            one.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature):
            raise ConfigError(
                f"the certificate {_name(one)} was not issued by {_name(above)}, which follows it: the signer's comes first"
            ) from None
    _check_purpose(chain.leaf)
    key = chain.leaf.public_key()
    if not _of_kind(key, signing.algorithm):
        raise ConfigError(
            f"the certificate {_name(chain.leaf)} has a key of the kind {_kind(key)}, which does not sign {signing.algorithm}"
        )


def _check_purpose(leaf: x509.Certificate) -> None:
    extensions = {e.oid: e.value for e in leaf.extensions}
    usage = extensions.get(x509.KeyUsage.oid)
    if not isinstance(usage, x509.KeyUsage) or not usage.digital_signature:
        raise ConfigError(f"the certificate {_name(leaf)} lacks the key usage digitalSignature")
    purposes = extensions.get(x509.ExtendedKeyUsage.oid)
    given = {p.dotted_string for p in purposes} if isinstance(purposes, x509.ExtendedKeyUsage) else set()
    if not given & _PURPOSES:
        raise ConfigError(
            f"the certificate {_name(leaf)} lacks an extended key usage of a signer: emailProtection, documentSigning or "
            "C2PA's claim signing"
        )
    basic = extensions.get(x509.BasicConstraints.oid)
    if isinstance(basic, x509.BasicConstraints) and basic.ca:
        raise ConfigError(f"the certificate {_name(leaf)} is an authority's; the signer's own comes first")


def _of_kind(key: PublicKeyTypes, algorithm: Algorithm) -> bool:
    if algorithm in _CURVES:
        return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == _CURVES[algorithm][0]
    return isinstance(key, ed25519.Ed25519PublicKey if algorithm == "ed25519" else rsa.RSAPublicKey)


def _kind(key: PublicKeyTypes) -> str:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PublicKey").strip("_")


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"number {certificate.serial_number}"


def _key_name(signing: Signing) -> str:
    return f"environment {signing.key_env}" if signing.key_env else f"signing.key_file {signing.key_file}"


def read_key(signing: Signing) -> PrivateKeyTypes:
    """The private key that `key_file` or `key_env` names.

    raises  ConfigError, which never shows what was read
    """
    if "-----BEGIN" in signing.key_file:
        raise ConfigError("signing.key_file holds a key; it should be the path of the file that holds it")
    if signing.key_env:
        content = secret_of(signing.key_env, "signing.key_env").encode()
    else:
        content = _read(signing.key_file, "signing.key_file")
    try:
        return serialization.load_pem_private_key(content, None)
    except TypeError:
        raise ConfigError(f"{_key_name(signing)} holds a key with a password; give one without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{_key_name(signing)} holds no private key in PEM (-----BEGIN PRIVATE KEY-----)") from None


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def ask(signing: Signing, leaf: x509.Certificate, content: bytes) -> bytes:
    """The signature of these bytes that `command` gives, as C2PA stores it (of es...: r and s one after another).

    raises  SigningError if the program cannot be run, fails, takes too long, or signs with another key than the certificate's
    """
    program = signing.command[0]
    try:
        done = subprocess.run(signing.command, input=content, capture_output=True, timeout=signing.command_timeout_s)
    except FileNotFoundError:
        raise SigningError(f"signing.command {program} is not there") from None
    except OSError as e:
        raise SigningError(f"signing.command {program} cannot be run: {e.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SigningError(f"signing.command {program} took more than {signing.command_timeout_s:g} s") from None
    if done.returncode:  # what it wrote is not shown: it may hold what no log should
        raise SigningError(f"signing.command {program} failed with exit status {done.returncode}")
    raw = _raw(done.stdout, signing.algorithm)
    try:
        _verify(leaf.public_key(), signing.algorithm, raw, content)
    except (InvalidSignature, ValueError):
        raise SigningError(
            f"what signing.command {program} gives ({len(done.stdout)} bytes) is no {signing.algorithm} signature under the "
            f"certificate {_name(leaf)}"
        ) from None
    return raw


def _raw(signature: bytes, algorithm: Algorithm) -> bytes:
    """r and s one after another of an ECDSA signature, which most services give as DER; others as they are."""
    if algorithm not in _CURVES or len(signature) == 2 * _CURVES[algorithm][1]:
        return signature
    n = _CURVES[algorithm][1]
    try:
        r, s = decode_dss_signature(signature)
        return r.to_bytes(n, "big") + s.to_bytes(n, "big")
    except (ValueError, OverflowError):
        return signature


def _verify(key: PublicKeyTypes, algorithm: Algorithm, raw: bytes, content: bytes) -> None:
    """raises InvalidSignature or ValueError"""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.verify(raw, content)
    how = _HASHES[algorithm[2:]]
    if isinstance(key, rsa.RSAPublicKey):
        return key.verify(raw, content, padding.PSS(padding.MGF1(how), how.digest_size), how)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    n = len(raw) // 2
    der = encode_dss_signature(int.from_bytes(raw[:n], "big"), int.from_bytes(raw[n:], "big"))
    return key.verify(der, content, ec.ECDSA(how))
