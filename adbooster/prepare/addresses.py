"""What a feed may name: addresses in object storage that are allowed, and hosts outside of the network.

An address is refused unless it means the same to whoever reads it: what is checked here is what is fetched.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote, urljoin

from adbooster.contracts.errors import ConfigError

# Schemes of object storage, and the one of these that means the same.
STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs", "az": "abfs"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_CONTAINER = re.compile(r"[A-Za-z0-9-]{1,63}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")  # of Azure, with its account
_DECODINGS = 8  # rounds of percent-decoding, each of which a careless reader might do


class Refused(ValueError):
    """An address that may not be fetched; its text is the reason."""


class Stored(NamedTuple):
    """An address in object storage, in plain."""

    scheme: str
    bucket: str
    key: str

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"

    @property
    def path(self) -> str:
        """As the storage's client takes it."""
        return f"{self.bucket.partition('@')[0]}/{self.key}"

    def within(self, folder: "Stored") -> bool:
        """Whether it lies in a folder (whole parts of the key, not letters)."""
        inside = not folder.key or self.key == folder.key or self.key.startswith(f"{folder.key.rstrip('/')}/")
        return self[:2] == folder[:2] and inside


def stored(address: str) -> Stored:
    """An address in object storage, taken apart.

    raises Refused for what different readers may take for different objects: users and passwords, queries, versions,
    fragments, parts that are empty or dots (percent-encoded or in look-alike characters too), backslashes, control
    characters, and bucket names in other letters than a storage allows
    """
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() not in STORES:
        raise Refused(f"{scheme[:20]!r} is no object storage")
    scheme = STORES[scheme.lower()]
    if not (_BUCKET.fullmatch(bucket) or (scheme == "abfs" and _CONTAINER.fullmatch(bucket))):
        raise Refused(f"{bucket[:80]!r} is no name of a bucket")
    if "::" in key or any(mark in key for mark in "?#"):
        raise Refused("it has a query, a fragment or a chain")
    for reading in _readings(key):
        if "\\" in reading or any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in reading):
            raise Refused("it has a backslash or control characters")
        if any(part in ("", ".", "..") for part in reading.removesuffix("/").split("/")) and reading:
            raise Refused("it has parts that are empty or dots")
    return Stored(scheme, bucket, key)


def _readings(key: str) -> Iterable[str]:
    """The key, and what it becomes where it is decoded or normalised once more, as often as that changes it."""
    for _ in range(_DECODINGS):
        yield key
        again = unicodedata.normalize("NFKC", unquote(key, errors="replace"))
        if again == key:
            return
        key = again
    raise Refused("it is percent-encoded many times over")


def prefix(text: str) -> Stored:
    """A folder or bucket of `allowed_stores`.

    raises Refused for anything else
    """
    return stored(text.rstrip("/") + "/")._replace(key=text.partition("://")[2].partition("/")[2].rstrip("/"))


def own_folder(feed_uri: str) -> tuple[str, ...]:
    """Where the photos of a feed in object storage may lie if nothing else is said: the feed's own folder."""
    scheme, _, rest = feed_uri.partition("://")
    return (f"{scheme}://{rest.rpartition('/')[0] or rest}",) if scheme.lower() in STORES and rest else ()


def fences(stores: Iterable[str] | None, feed_uri: str) -> list[Stored]:
    """The folders that photos may lie in: `stores`, or, where that is None, the feed's own.

    raises ConfigError if one of them is no plain folder
    """
    try:
        return [prefix(store) for store in (own_folder(feed_uri) if stores is None else stores)]
    except Refused as e:
        raise ConfigError(
            f"the folder of the feed {feed_uri} is none that photos can lie in: {e}; set allowed_stores"
        ) from e


def allowed(address: str, stores: Iterable[Stored]) -> Stored:
    """The address taken apart, if it lies in one of these folders.

    raises Refused
    """
    found = stored(address)
    if not any(found.within(folder) for folder in stores):
        raise Refused("it lies outside of prepare.allowed_stores")
    return found


def is_public(address: str) -> bool:
    """Whether an IP address, and an IPv4 address embedded in it, lies outside all private and reserved ranges."""
    ip = ipaddress.ip_address(address)
    inner = None
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in ipaddress.ip_network("64:ff9b::/96") or int(ip) >> 32 == 0:  # NAT64, IPv4-compatible
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if inner:
        return is_public(str(inner))
    refused = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_reserved or ip.is_multicast
    return ip.is_global and not refused and not ip.is_unspecified


def absolute(uri: str, base: str) -> str:
    """An address of a feed, relative ones against the feed's own."""
    if "://" in uri or (uri.startswith("/") and "://" not in base):
        return uri
    return urljoin(base, uri) if base.lower().startswith(("http://", "https://")) else f"{base.rsplit('/', 1)[0]}/{uri}"
