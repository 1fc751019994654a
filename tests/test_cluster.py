"""What is written for clusters is valid where it will be read."""

import json
from pathlib import Path

import jsonschema
import ray
import yaml

REPO = Path(__file__).parents[1]


def test_ray_cluster_yaml_passes_rays_own_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((REPO / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}


def test_constraints_pin_every_dependency():
    lines = (REPO / "constraints.txt").read_text().split()
    assert all("==" in line and "://" not in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {
        "torch",
        "torchvision",
        "ray",
        "diffusers",
        "transformers",
        "open-clip-torch",
        "deltalake",
        "pytest",
    } <= pinned
    assert "torch==2.14.1" in lines
    assert "torchvision==0.29.1" in lines
