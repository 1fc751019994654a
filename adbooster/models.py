"""Models brought below the root once, so that a night depends on no hub: `root_uri/models/<name>/<revision>/`."""

import json
import os
import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from adbooster.errors import ConfigError
from adbooster.node_cache import MANIFEST, sha256_of
from adbooster.objects import Root, content_hash, each, fetch_folder, refuse_pickles

HUB = "hub:"
WANTED = ["*.safetensors", "*.onnx", "*.onnx_data", "*.json", "*.txt", "*.model"]  # nothing else is asked of a hub


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
    """Copy a model below the root, files first and its manifest (sha256 of each) last; what is there is not copied again.

    source  a folder or file, local or s3://..., or hub:<owner>/<name>
    raises  ConfigError for what is not there, for pickles, and if something else lies under the revision's name
    """
    with tempfile.TemporaryDirectory(prefix="adbooster-pull-") as scratch:
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
            each(lambda p: root.upload(p, f"{below}/{p.relative_to(folder).as_posix()}"), files)
            facts = {"name": name, "revision": revision, "source": source, "hub_commit": commit}
            root.write_json(f"{below}/{MANIFEST}", facts | {"pulled_at": datetime.now(UTC).isoformat(), "files": known})
        elif _without_card(json.loads(root.read(f"{below}/{MANIFEST}"))["files"]) != _without_card(known):
            raise ConfigError(f"{root.uri}/{below} holds other files than {source}; remove that folder and pull again")
    return done


class Kept(BaseModel):
    """A whole model below the root, as its manifest tells it."""

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
    """The models that were pulled whole, by name, newest first; nothing of them but their manifests is read."""
    folders = [
        f"models/{name}/{revision}" for name in root.names("models") for revision in root.names(f"models/{name}")
    ]
    found = [k for k in each(lambda folder: _kept(root, folder), folders) if k]
    return sorted(sorted(found, key=lambda k: k.pulled_at, reverse=True), key=lambda k: k.name)


def _kept(root: Root, folder: str) -> Kept | None:
    """None: a pull that was cut off."""
    try:
        said = json.loads(root.read(f"{folder}/{MANIFEST}"))
    except FileNotFoundError:
        return None
    files = said.pop("files")
    uri = _uri(root, folder, list(files))
    return Kept(**said, uri=uri, files=len(files), size_bytes=sum(f["size_bytes"] for f in files.values()))


def _uri(root: Root, folder: str, files: list[str]) -> str:
    return f"{root.uri}/{folder}" + (f"/{files[0]}" if len(files) == 1 else "")


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
        found = huggingface_hub.snapshot_download(
            source.removeprefix(HUB),
            revision=hub_revision,
            cache_dir=scratch / "hub",
            allow_patterns=WANTED,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )
    except (OSError, HfHubHTTPError, ValueError) as e:
        raise ConfigError(f"{source} at {hub_revision!r} cannot be had from the hub: {str(e)[:300]}") from e
    shutil.copytree(found, scratch / "model")  # the cache's links become files
    return scratch / "model", Path(found).name
