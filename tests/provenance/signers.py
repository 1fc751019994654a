"""Certificates and keys of tests: an authority, and signers of its own that are wrong in one way each."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from adbooster.provenance.certificates import Issued, issue
from adbooster.provenance.signing import Signing

AUTHORITY = issue("authority")
SIGNER = issue("signer", AUTHORITY)
NOW = datetime.now(UTC)


class Files(NamedTuple):
    """Paths of what a signer needs."""

    chain: str
    key: str
    anchors: str


def write(folder: Path, signer: Issued = SIGNER, key: Issued | None = None, authority: Issued = AUTHORITY) -> Files:
    """A signer's chain, its key (or another one), and the authority."""
    folder.mkdir(exist_ok=True)
    paths = Files(*(str(folder / name) for name in ("chain.pem", "key.pem", "ca.pem")))
    contents = signer.pem + authority.pem, (key or signer).key_pem, authority.pem
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    return paths


def signing(folder: Path, signer: Issued = SIGNER, **changes) -> Signing:
    """Settings with a chain, a key file and trust anchors."""
    files = write(folder, signer)
    return Signing.model_validate(
        {"chain": files.chain, "key_file": files.key, "trust_anchors": files.anchors} | changes
    )


def expired() -> Issued:
    return issue("expired", AUTHORITY, days=5, start=NOW - timedelta(days=30))


def not_yet_valid() -> Issued:
    return issue("early", AUTHORITY, start=NOW + timedelta(days=3))
