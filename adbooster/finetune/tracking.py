"""The curves of a run: TensorBoard files beside it, and MLflow where a tracking server is named."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from adbooster.contracts.errors import ConfigError
from adbooster.storage.objects import Root


def check(mlflow_uri: str) -> None:
    """raises ConfigError if MLflow is asked for and not installed"""
    if mlflow_uri and find_spec("mlflow") is None:
        raise ConfigError(f"mlflow_uri is {mlflow_uri} and mlflow is not installed; pip install mlflow")


class Curves:
    """Scalars and pictures by step. Files are written on this machine and brought below the root by `flush`."""

    def __init__(self, root: Root, folder: str, first_step: int, mlflow_uri: str = "", name: str = ""):
        from torch.utils.tensorboard import SummaryWriter

        self.root, self.folder, self.sent = root, folder, {}
        self.scratch = tempfile.TemporaryDirectory()
        # Points of an attempt that died after `first_step` are dropped: this one draws them again.
        self.writer = SummaryWriter(self.scratch.name, purge_step=first_step, filename_suffix=f".{first_step}")
        self.mlflow = None
        if mlflow_uri:
            import mlflow  # pyright: ignore[reportMissingImports]

            mlflow.set_tracking_uri(mlflow_uri)
            mlflow.set_experiment("adbooster-finetune")
            known = mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list")
            mlflow.start_run(run_id=known[0].info.run_id if known else None, run_name=name)
            self.mlflow = mlflow

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        if self.mlflow:
            self.mlflow.log_metrics({k.replace("/", "."): v for k, v in figures.items()}, step=step)

    def add_picture(self, step: int, name: str, picture_u8: np.ndarray) -> None:
        self.writer.add_image(name, picture_u8, step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()
        for path in sorted(Path(self.scratch.name).iterdir()):
            if self.sent.get(path.name) != path.stat().st_size:
                self.root.put_file(path, f"{self.folder}/{path.name}")
                self.sent[path.name] = path.stat().st_size

    def close(self) -> None:
        self.flush()
        self.writer.close()
        if self.mlflow:
            self.mlflow.end_run()
        self.scratch.cleanup()
