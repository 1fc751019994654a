"""A certificate authority and a signer of its own for development; nobody else trusts them."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adbooster.contracts.errors import ConfigError

FILES = ("ca.pem", "chain.pem", "key.pem")
DAYS = 90
_ORGANISATION = "AdBooster development"


class Issued(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        how = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, *how)


def write_dev(folder: Path) -> tuple[Path, ...]:
    """Make an authority and a signer (ES256), valid for 90 days; returns the paths of ca.pem, chain.pem and key.pem.

    The authority's own key is not kept. raises  ConfigError if one of the files is there: nothing is overwritten
    """
    paths = tuple(folder.absolute() / name for name in FILES)
    if there := [path for path in paths if path.exists()]:
        raise ConfigError(f"{there[0]} is there and is not overwritten; give another folder")
    authority = issue("development authority")
    signer = issue("development signer", authority)
    for path, content in zip(paths, (authority.pem, signer.pem + authority.pem, signer.key_pem), strict=True):
        _create(path, content)
    return paths


def _create(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if path.name == "key.pem" else 0o644)
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror}") from e


def issue(
    name: str, by: Issued | None = None, days: float = DAYS, start: datetime | None = None, purpose: bool = True
) -> Issued:
    """A signer's certificate, issued `by` an authority; without one, an authority's own.

    start    from when it is valid; null: an hour ago, for clocks that differ
    purpose  whether it has the extended key usage that a signer needs (emailProtection)
    """
    key, begins = ec.generate_private_key(ec.SECP256R1()), start or datetime.now(UTC) - timedelta(hours=1)
    issuer_key = by.key if by else key
    subject = _subject(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None if by else 0), critical=True)
        .add_extension(_usage(by is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if by and purpose:
        emails = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(emails, critical=False)
    return Issued(builder.sign(issuer_key, hashes.SHA256()), key)


def _subject(name: str) -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, _ORGANISATION), (NameOID.COMMON_NAME, name))
    return x509.Name([x509.NameAttribute(*part) for part in parts])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
