"""Mask models in a storage: the .onnx file with its sidecar, what names their masks, and a trial run before work begins."""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adbooster.contracts.errors import ConfigError
from adbooster.models import preprocessing
from adbooster.models.preprocessing import Preprocessing
from adbooster.models.settings import MaskNetwork
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import _filesystem, _is_local

log = logging.getLogger(__name__)


class MaskModel(NamedTuple):
    """A salient-object network on this machine, and how it is fed."""

    path: Path
    how: Preprocessing

    @property
    def revision(self) -> str:
        """16 hex digits of the file and of how it is fed: equal masks have equal names."""
        return preprocessing.revision(content_hash(self.path), self.how)


def mask_model(uri: str, network: MaskNetwork) -> MaskModel:
    """The model at `uri`, copied to this node if need be, with its sidecar's values below the settings'.

    raises  ConfigError if there is none, it is not an .onnx file, or its sidecar cannot be read
    """
    path = local_copy(uri)
    if path.suffix != ".onnx":
        raise ConfigError(f"the mask model {uri} is not an .onnx file")
    fs, remote = _filesystem(uri)
    beside = next((n for n in preprocessing.sidecar_names(remote) if fs.isfile(n)), None)
    sidecar = beside and local_copy(beside if _is_local(fs) else fs.unstrip_protocol(beside))
    return MaskModel(path, preprocessing.read_preprocessing(sidecar or None, network))


def mask_input(model: MaskModel) -> Preprocessing:
    """How its network is fed, with the size that only its graph knows where nothing else says it.

    raises  ConfigError if this machine's CPUs cannot open the graph
    """
    if model.how.size_px:
        return model.how
    from adbooster.models.saliency import SaliencyNet

    try:
        return model.how.model_copy(update={"size_px": SaliencyNet(model.path, "cpu", 1, model.how).size_px})
    except ConfigError:
        raise
    except Exception as e:  # onnxruntime's errors have no common base
        raise ConfigError(
            f"the size that the mask model {model.path} takes cannot be read on this machine; set "
            f"mask_network.input_px: {str(e)[:300]}"
        ) from e


def check_mask_model(uri: str, network: MaskNetwork, device: str) -> None:
    """raises ConfigError for what `mask_model` raises, and for a network whose output on a made picture is no mask"""
    model = mask_model(uri, network)
    stat = model.path.stat()
    _probe(model, device, stat.st_mtime_ns, stat.st_size)


@cache
def _probe(model: MaskModel, device: str, _mtime_ns: int, _size_bytes: int) -> None:
    """On this machine's CPUs, which may lack operators that the GPU has: then the first picture shows it."""
    from adbooster.models.saliency import SaliencyNet, probe

    try:
        probe(SaliencyNet(model.path, "cpu", 0, model.how))
    except ConfigError:
        raise
    except Exception as e:  # onnxruntime's errors have no common base
        first = str(e).splitlines()[0][:300] if str(e) else type(e).__name__
        if device == "cpu":
            raise ConfigError(f"the mask model {model.path} cannot be run: {first}") from e
        log.warning("the mask model %s cannot be tried on this machine's CPUs: %s", model.path, first)
