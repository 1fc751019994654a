"""Where a training run stands, kept below the root, so that it goes on after any crash: its worker's, its driver's, its node's."""

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adbooster.contracts.errors import ConfigError
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


class Mark(BaseModel):
    """What is known of a checkpoint without reading it; written after it, so that it says that it is whole."""

    step: int
    """Steps done: the position in the data, too, as the plan of batches follows from the settings."""
    architecture: dict
    """`inpainting.architecture` of the model in it."""
    name: str
    """Of the run."""


class Checkpoints:
    """The checkpoints of one folder: the newest two, or as many as `keep` says."""

    def __init__(self, root: Root, folder: str, keep: int = 2):
        self.root, self.folder, self.keep = root, folder, keep

    def latest(self) -> Mark | None:
        marks = self._marks()
        return Mark.model_validate_json(self.root.read(f"{self.folder}/{marks[-1]}")) if marks else None

    def _marks(self) -> list[str]:
        """Names of the marks, oldest first; files of others that lie beside them are left out."""
        return [name for name in self.root.files(self.folder) if re.fullmatch(r"step-[0-9]{9}\.json", name)]

    def save(self, mark: Mark, state: dict[str, Any]) -> None:
        """Write the state whole, then its mark; older ones than the newest `keep` go."""
        import torch

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "state"
            torch.save(state, path)
            self.root.put_file(path, self._file(mark, "pt"))
        self.root.write(self._file(mark, "json"), mark.model_dump_json(indent=2).encode())
        for old in self._marks()[: -self.keep]:
            self.root.remove([f"{self.folder}/{old}"])
            self.root.remove([f"{self.folder}/{old.removesuffix('.json')}.pt"])

    def load(self, mark: Mark) -> dict[str, Any]:
        """The state as it was saved, on the CPU; tensors and plain values only, so it can run no code."""
        import torch

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "state"
            self.root.fs.get_file(self.root.path(self._file(mark, "pt")), str(path))
            return torch.load(path, map_location="cpu", weights_only=True)

    def _file(self, mark: Mark, kind: str) -> str:
        return f"{self.folder}/step-{mark.step:09d}.{kind}"


def open_at(uri: str) -> Checkpoints:
    """The checkpoints of another run, by the address of their folder.

    raises ConfigError if there are none
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    found = Checkpoints(Root(parent), name)
    if found.latest() is None:
        raise ConfigError(f"there is no whole checkpoint in {uri}; a run keeps its last one with keep_checkpoint")
    return found


def check_fits(mark: Mark, wanted: dict, uri: str) -> None:
    """raises ConfigError if a checkpoint was made from another architecture, naming the first thing that differs"""
    for key in sorted({*mark.architecture, *wanted}):
        found, asked = (json.loads(json.dumps(a.get(key))) for a in (mark.architecture, wanted))
        if found != asked:
            raise ConfigError(
                f"the checkpoint {uri} is of another architecture: its {key} is {found} and the base's is {asked}"
            )
