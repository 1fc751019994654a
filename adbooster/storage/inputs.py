"""Files that people hand in (marks, targeting, brand rules, cohorts...): of bounded size, and signed where that is asked for."""

import hashlib
import hmac
import re
from typing import NamedTuple, cast

from fsspec.core import url_to_fs

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.settings import secret_of
from adbooster.storage.objects import _is_local

SIGNATURE = ".sig"
FORMAT = "adbooster-signature-1"
MAX_FILES = 10_000  # of one folder


class Input(NamedTuple):
    """A file as it was read, once: what is parsed is what was hashed and verified."""

    uri: str
    content: bytes
    sha256: str
    signed: bool
    """its signature was asked for and is right"""


def read_input(uri: str, what: str, max_bytes: int, signing_key_env: str = "") -> Input:
    """One file, read whole.

    what             what it is, for errors: `marks file`
    signing_key_env  environment variable with the key of its signature, which lies in `<uri>.sig`; empty: none is asked for
    raises           ConfigError if it is not there, no file, too large, or not signed with the key
    """
    return _read([uri], uri, what, max_bytes, signing_key_env)[0]


def read_inputs(uri: str, what: str, suffix: str, max_bytes: int, signing_key_env: str = "") -> list[Input]:
    """One file, or the files of a folder that end in `suffix`, sorted by name; as `read_input` for each of them."""
    fs, path = url_to_fs(uri)
    if not fs.exists(path) or not fs.isdir(path):
        return _read([uri], uri, what, max_bytes, signing_key_env)
    files = sorted(i["name"] for i in fs.ls(path, detail=True) if i["type"] == "file" and i["name"].endswith(suffix))
    if len(files) > MAX_FILES:
        raise ConfigError(f"{uri} holds {len(files)} files that end in {suffix}, allowed are {MAX_FILES}")
    names = [name if _is_local(fs) else fs.unstrip_protocol(name) for name in files]
    return _read(names, uri, what, max_bytes, signing_key_env)


def _read(uris: list[str], given: str, what: str, max_bytes: int, signing_key_env: str) -> list[Input]:
    fs, _ = url_to_fs(given)
    key = secret_of(signing_key_env, "signing_key_env").encode() if signing_key_env else b""
    found = []
    for uri in uris:
        path = url_to_fs(uri)[1]
        if not fs.exists(path):
            raise ConfigError(f"there is no {what} at {uri}")
        if fs.isdir(path):
            raise ConfigError(f"the {what} {uri} is a folder and should be a file")
        if (size := fs.size(path) or 0) > max_bytes:
            raise ConfigError(f"the {what} {uri} has {size} bytes, allowed are {max_bytes}")
        content = cast(bytes, fs.cat_file(path, end=max_bytes + 1))
        if len(content) > max_bytes:
            raise ConfigError(f"the {what} {uri} has more than {max_bytes} bytes")
        if key:
            signature = fs.cat_file(path + SIGNATURE, end=1000) if fs.isfile(path + SIGNATURE) else None
            _verify(key, content, cast(bytes | None, signature), f"{what} {uri}")
        found.append(Input(uri, content, hashlib.sha256(content).hexdigest(), bool(key)))
    return found


def _verify(key: bytes, content: bytes, signature: bytes | None, what: str) -> None:
    if signature is None:
        raise ConfigError(
            f"the {what} is not signed, which signing_key_env asks for; `adbooster sign` makes its {SIGNATURE}"
        )
    match = re.fullmatch(rb"%s ([0-9a-f]{64})\s*" % FORMAT.encode(), signature)
    if not match or not hmac.compare_digest(match[1].decode(), _mac(key, content)):
        raise ConfigError(f"the {what} is not what was signed, or was signed with another key; nothing of it is used")


def sign(uri: str, key_env: str) -> str:
    """Write the signature of a file beside it, HMAC-SHA256 under the key in an environment variable; returns its address.

    raises ConfigError if there is no such file or no key
    """
    key = secret_of(key_env, "--key-env").encode()
    fs, path = url_to_fs(uri)
    if not fs.isfile(path):
        raise ConfigError(f"there is no file at {uri}")
    fs.pipe_file(path + SIGNATURE, f"{FORMAT} {_mac(key, cast(bytes, fs.cat_file(path)))}\n".encode())
    return uri + SIGNATURE


def _mac(key: bytes, content: bytes) -> str:
    return hmac.digest(key, FORMAT.encode() + b"\n" + content, "sha256").hex()
