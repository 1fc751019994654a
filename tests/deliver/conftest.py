"""Channels at a fifth of their sizes, and a job whose renditions are made in this process."""

import hashlib
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pap
import pytest
import yaml

from adbooster.channels.presets import PRESETS
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.plan import staged_folder
from adbooster.deliver.stages import Renderer


@pytest.fixture
def small(tmp_path):
    """Writes presets of channels at a fifth of their sizes; gives the paths of their files."""

    return partial(small_channels, tmp_path)


def small_channels(folder, *names, **changes):
    paths = []
    for name in names:
        content = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | changes
        for slot in content["slots"].values():
            slot |= {size: [round(n / 5) for n in slot[size]] for size in ("min_px", "wanted_px")}
        paths.append(folder / f"{content['name']}.yaml")
        paths[-1].write_text(yaml.safe_dump(content))
    return tuple(map(str, paths))


@pytest.fixture
def rendered(monkeypatch):
    """Renditions are made here, without Ray, and staged as the engine stages them; gives what was asked for, call by call."""
    calls = []

    def render(config, root, requests):
        calls.append(requests)
        rows = Renderer(root, config.encoding, config.fidelity, config.signing)(requests)
        out = pa.BufferOutputStream()
        pap.write_table(rows, out)
        content = out.getvalue().to_pybytes()
        name = hashlib.sha256(content).hexdigest()[:32]
        root.write(f"{staged_folder(config.run_id)}/{name}.parquet", content)

    monkeypatch.setattr("adbooster.deliver.job._render", render)
    return calls


def config(root, channels, run_id="d1", **changes):
    values = {
        "root_uri": root.uri,
        "run_id": run_id,
        "channels": channels,
        "public_base_url": "https://cdn.shop.example/ads",
    }
    return DeliverConfig(**values | changes)
