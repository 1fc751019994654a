"""Models brought below the root once, so that a night depends on no hub: `root_uri/models/<name>/<revision>/`."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError
from adbooster.storage import node_cache
from adbooster.storage.node_cache import MANIFEST, sha256_of
from adbooster.storage.objects import Root, _filesystem, _is_local, each
from adbooster.storage.outage import room

log = logging.getLogger(__name__)


def local_copy(uri: str) -> Path:
    """A model file or folder as a local path: itself, or copied once to this node's cache (node_cache.py).

    A model that `adbooster models pull` brought is compared with its manifest, once a process.
    raises ConfigError if there is nothing at `uri`, or its files differ from the manifest
    """
    fs, path = _filesystem(uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no model at {uri}")
    return node_cache.verified(Path(path), uri) if _is_local(fs) else node_cache.copied(fs, path, uri)


def fetch_folder(uri: str, folder: Path) -> Path:
    """Copy a folder, or one file, into a new local folder.

    raises ConfigError if there is nothing at `uri`
    """
    fs, path = _filesystem(uri)
    if not fs.exists(path):
        raise ConfigError(f"there is no model at {uri}")
    if fs.isdir(path):
        fs.get(path, str(folder), recursive=True)
    else:
        folder.mkdir()
        fs.get(path, str(folder / path.rsplit("/", 1)[-1]))
    return folder


def content_hash(path: Path) -> str:
    """16 hex digits over names and bytes of a file, or of a folder without its card.json and a pull's manifest."""
    hasher = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name != "card.json")
    files = [p for p in files if p != path / node_cache.MANIFEST]
    for file in files:
        hasher.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as f:
            hasher.update(hashlib.file_digest(f, "sha256").digest())
    return hasher.hexdigest()[:16]


def refuse_pickles(path: Path) -> None:
    """raises ConfigError if a model folder holds weights only in a format that can run code"""
    bad = [p.name for p in path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    good = any(p.suffix in (".safetensors", ".onnx") for p in [path, *path.rglob("*")])
    if bad or not good:
        problem = f"holds {', '.join(bad)}" if bad else "holds no weights"
        raise ConfigError(f"the model {path} {problem}; give safetensors or ONNX")


HUB = "hub:"
WANTED = [
    "*.safetensors",
    "*.onnx",
    "*.onnx_data",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
]  # nothing else is requested from a hub


class Pulled(BaseModel):
    """A model below the root."""

    uri: str
    """What jobs are given: the folder, or its one file."""
    name: str
    revision: str
    """Content hash of the files; 16 hex digits, equal for equal bytes wherever they came from."""
    source: str
    hub_commit: str | None = None
    """The hub's commit, where it came from a hub."""
    files: int
    size_bytes: int
    copied: bool
    """False: it was there already."""


def pull(root: Root, source: str, name: str = "", hub_revision: str = "main") -> Pulled:
    """Copy a model below the root, files first, its manifest (sha256 of each) last; an existing copy is kept.

    source  a folder or file, local or s3://..., or hub:<owner>/<name>
    raises  ConfigError for a missing source, for pickles, and if other files lie under the revision's name
    """
    with (
        room(f"the temporary folder {tempfile.gettempdir()} (TMPDIR moves it)"),
        tempfile.TemporaryDirectory(prefix="adbooster-pull-") as scratch,
    ):
        folder, commit = _bring(source, hub_revision, Path(scratch))
        refuse_pickles(folder)
        name = name or re.sub(r"\.\w+$", "", source.rstrip("/").rsplit("/", 1)[-1])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ConfigError(f"--name {name!r} should be letters, digits, dots, dashes and underscores, at most 100")
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
        revision = content_hash(folder)
        known = {
            p.relative_to(folder).as_posix(): {"sha256": sha256_of(p), "size_bytes": p.stat().st_size} for p in files
        }
        below = f"models/{name}/{revision}"
        done = Pulled(
            uri=_uri(root, below, list(known)),
            name=name,
            revision=revision,
            source=source,
            hub_commit=commit,
            files=len(files),
            size_bytes=sum(f["size_bytes"] for f in known.values()),
            copied=not root.exists(f"{below}/{MANIFEST}"),
        )
        if done.copied:
            each(lambda p: root.put_file(p, f"{below}/{p.relative_to(folder).as_posix()}"), files)
            facts = {"name": name, "revision": revision, "source": source, "hub_commit": commit}
            root.write_json(f"{below}/{MANIFEST}", facts | {"pulled_at": datetime.now(UTC).isoformat(), "files": known})
        elif _without_card(json.loads(root.read(f"{below}/{MANIFEST}"))["files"]) != _without_card(known):
            raise ConfigError(
                f"{root.address(below)} holds other files than {source}; remove that folder and pull again"
            )
    return done


class Kept(BaseModel):
    """A complete model below the root, as its manifest describes it."""

    uri: str
    """What jobs are given: the folder, or its one file."""
    name: str
    revision: str
    source: str
    hub_commit: str | None = None
    pulled_at: datetime
    files: int
    size_bytes: int


def kept(root: Root) -> list[Kept]:
    """The completely pulled models, by name, newest first; only their manifests are read."""
    folders = [
        f"models/{name}/{revision}" for name in root.folders("models") for revision in root.folders(f"models/{name}")
    ]
    models = [k for k in each(lambda folder: _kept(root, folder), folders) if k]
    return sorted(sorted(models, key=lambda k: k.pulled_at, reverse=True), key=lambda k: k.name)


def _kept(root: Root, folder: str) -> Kept | None:
    """None: a pull that was cut off, or a manifest that `pull` did not write."""
    try:
        manifest = json.loads(root.read(f"{folder}/{MANIFEST}"))
        files = manifest.pop("files")
        uri = _uri(root, folder, list(files))
        return Kept(**manifest, uri=uri, files=len(files), size_bytes=sum(f["size_bytes"] for f in files.values()))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        log.warning("leaving out %s, whose manifest is not one: %s", folder, str(e).splitlines()[0])
        return None


def _uri(root: Root, folder: str, files: list[str]) -> str:
    return root.address(folder) + (f"/{files[0]}" if len(files) == 1 else "")


def _without_card(files: dict) -> dict:
    return {name: facts for name, facts in files.items() if name != "card.json"}


def _bring(source: str, hub_revision: str, scratch: Path) -> tuple[Path, str | None]:
    """(a local folder with the model's files alone, the hub's commit)"""
    if not source.startswith(HUB):
        return fetch_folder(source, scratch / "model"), None
    os.environ["HF_HUB_OFFLINE"] = "0"  # images set it for the jobs
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot = huggingface_hub.snapshot_download(
            source.removeprefix(HUB),
            revision=hub_revision,
            cache_dir=scratch / "hub",
            allow_patterns=WANTED,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except (OSError, HfHubHTTPError, ValueError) as e:
        raise ConfigError(f"{source} at {hub_revision!r} cannot be downloaded from the hub: {str(e)[:300]}") from e
    shutil.copytree(snapshot, scratch / "model")  # the cache's links become files
    return scratch / "model", Path(snapshot).name
