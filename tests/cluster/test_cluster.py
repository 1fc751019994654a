"""What is written for clusters is valid where it will be read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

from tests.manifests import DIGEST, MANIFESTS, RAY_PINNED, REPO, render

# --- ray up ---


def cluster() -> dict:
    return yaml.safe_load((REPO / "ray_cluster.yaml").read_text())


def test_ray_cluster_yaml_passes_rays_own_schema(tmp_path):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster(), schema)
    assert render("ray_cluster.yaml", tmp_path / "c.yaml").returncode == 0
    filled = yaml.safe_load((tmp_path / "c.yaml").read_text())
    jsonschema.validate(filled, schema)
    validate_config(fillout_defaults(filled))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(filled | {"max_wokers": 3}, schema)


def test_nodes_of_ray_cluster_yaml():
    nodes, whole = cluster()["available_node_types"], cluster()
    head = nodes.pop(whole["head_node_type"])
    assert head["resources"] == {"CPU": 0}, "no work where the driver runs"
    assert "InstanceMarketOptions" not in head["node_config"], "the head is on demand"
    assert head.get("max_workers", 0) == 0
    for node in nodes.values():
        assert 0 <= node["min_workers"] <= node["max_workers"]
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(n["max_workers"] for n in nodes.values()) <= whole["max_workers"]
    assert [name for name, n in nodes.items() if n["resources"].get("GPU")] == ["gpu_worker"]
    assert nodes["cpu_worker"]["resources"]["CPU"] > 0
    starts = [whole[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all("--object-spilling-directory=/mnt/scratch/spill" in start for start in starts)
    assert any("RAY_AUTH_MODE=token" in option for option in whole["docker"]["run_options"])
    assert "~/.ray/auth_token" in whole["file_mounts"]


# --- places to fill ---


@pytest.mark.parametrize("source", ["ray_cluster.yaml", "cluster/kuberay"])
def test_what_is_rendered_has_no_place_left(tmp_path, source):
    assert render(source, tmp_path / "out").returncode == 0
    found = [tmp_path / "out"] if (tmp_path / "out").is_file() else [*(tmp_path / "out").rglob("*")]
    texts = [p.read_text() for p in found if p.is_file()]
    left = [re.findall(r"^[^#\n]*<[a-z-]+>", text, re.MULTILINE) for text in texts]
    assert not any(left)
    assert any(f"image: shop/adbooster@{DIGEST}" in text for text in texts)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": None}, "these places are not filled: image=..."),
        ({"image": ""}, "is not pinned by digest"),
        ({"image": "shop/adbooster:latest"}, "image 'shop/adbooster:latest' is not pinned by digest"),
        ({"image": "shop/adbooster@sha256:1234"}, "is not pinned by digest"),
        ({"bucket": "x"}, "there is no place 'bucket'"),
    ],
)
def test_an_image_without_a_digest_is_refused(tmp_path, changes, says):
    done = render("ray_cluster.yaml", tmp_path / "out", **changes)
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    assert says in done.stderr


def test_every_image_of_every_manifest_is_a_place():
    for path in [REPO / "ray_cluster.yaml", *MANIFESTS]:
        images = re.findall(r"^\s*image: *(\S+)", path.read_text(), re.MULTILINE)
        assert all(re.fullmatch(r"<([a-z-]+-)?image>", image) for image in images), (path, images)


# --- the image ---


def test_the_image_is_pinned_and_runs_as_nobody_special():
    lines = [line for line in (REPO / "cluster" / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines)
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-gpu@\$\{BASE_DIGEST\}$", text, re.MULTILINE)
    assert base, "Ray's GPU image, by digest"
    assert base[1] == RAY_PINNED
    assert f">={base[2]}.{base[3]}" in (REPO / "pyproject.toml").read_text()
    assert "ARG BASE_DIGEST\n" in text, "no default: a build without it stops"
    assert f"'{RAY_PINNED}'" in text
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users
    assert set(users) == {"ray"}
    installs = [part for part in re.split(r"&&|\n", text) if "pip install" in part]
    assert all("--constraint constraints.txt" in part or "--no-deps ." in part for part in installs)
    assert "ENTRYPOINT" not in text


def test_no_weights_no_settings_and_no_keys_go_to_the_builder():
    rules = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    dockerfile = (REPO / "cluster" / "Dockerfile").read_text()
    copied = {
        name for line in re.findall(r"^COPY --chown=\S+ (.*) \S+$", dockerfile, re.MULTILINE) for name in line.split()
    }
    assert copied == let_in
    assert "adbooster/tiny" in rules, "the embedded weights stay out"
    suffixes = (".safetensors", ".onnx", ".env", ".pem")
    sent = [p for name in let_in for p in [REPO / name, *(REPO / name).rglob("*")]]
    assert not [p for p in sent if p.suffix in suffixes and "adbooster/tiny" not in p.as_posix()]


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
        "onnxruntime-gpu",
    } <= pinned
    assert "torch==2.14.1" in lines
    assert "torchvision==0.29.1" in lines


def test_the_readme_fills_the_places_that_there_are():
    text = (REPO / "docs" / "operate.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python (cluster/render\.py) (\S+) --out \S+ (.*)$", text, re.MULTILINE)
    assert {source for _, source, _ in commands} == {"ray_cluster.yaml", "cluster/kuberay"}
    for script, source, values in commands:
        listed = subprocess.run([sys.executable, REPO / script, REPO / source], capture_output=True, text=True).stdout
        assert {value.split("=")[0] for value in values.split()} == set(listed.split())
