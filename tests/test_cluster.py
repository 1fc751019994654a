"""What is written for clusters is valid where it will be read."""

import copy
import json
import os
import re
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml

REPO = Path(__file__).parents[1]
KUBERAY = REPO / "cluster" / "kuberay"
DIGEST = re.compile(r"(@sha256:(<digest>|[0-9a-f]{64}))$")
needs_crds = pytest.mark.skipif("ADBOOSTER_CRDS" not in os.environ, reason="ADBOOSTER_CRDS names no folder of CRDs")


def documents(path: Path) -> list[dict]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def manifests() -> dict[str, dict]:
    """Every Kubernetes object below cluster/kuberay, by file and place; the standing cluster also with Redis."""
    found = {}
    for path in sorted(KUBERAY.rglob("*.yaml")):
        for i, d in enumerate(documents(path)):
            if isinstance(d, dict) and d.get("kind", "Kustomization") != "Kustomization":
                found[f"{path.relative_to(KUBERAY)}[{i}]"] = d
    with_redis = copy.deepcopy(found["raycluster.yaml[0]"])
    for change in documents(KUBERAY / "redis" / "raycluster.patch.yaml")[0]:
        assert change["op"] == "add"
        *parents, last = change["path"].strip("/").split("/")
        at = with_redis
        for parent in parents:
            at = at[parent]
        at[last] = change["value"]
    return found | {"raycluster.yaml with redis": with_redis}


def is_rays(manifest: dict) -> bool:
    return manifest["apiVersion"].startswith("ray.io/")


def ray_clusters() -> dict[str, dict]:
    specs = {name: m["spec"].get("rayClusterSpec", m["spec"]) for name, m in manifests().items() if is_rays(m)}
    return {name: spec for name, spec in specs.items() if "headGroupSpec" in spec}


def strict(crd_schema: dict) -> dict:
    """The schema, with unknown fields refused: the API server drops them without a word."""
    schema = dict(crd_schema)
    if "properties" in schema:
        schema["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        schema["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = strict(schema["additionalProperties"])
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
    schema.pop("format", None)
    return schema


def against_crd(manifest: dict) -> None:
    """raises jsonschema.ValidationError unless KubeRay's own definition of this kind takes every field"""
    error = jsonschema.exceptions.best_match(crd_of(manifest["kind"], manifest["apiVersion"]).iter_errors(manifest))
    if error:
        raise error


@cache
def crd_of(kind: str, api_version: str) -> jsonschema.Draft202012Validator:
    path = Path(os.environ["ADBOOSTER_CRDS"]) / f"ray.io_{kind.lower()}s.yaml"
    versions = {v["name"]: v for v in yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]}
    known = strict(versions[api_version.split("/")[1]]["schema"]["openAPIV3Schema"])
    known["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(known)


def test_ray_cluster_yaml_passes_rays_own_schema():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((REPO / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # on demand
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(t["max_workers"] for t in types.values()) <= cluster["max_workers"]
    assert all(t["min_workers"] <= t["max_workers"] for t in types.values())
    assert DIGEST.search(cluster["docker"]["image"])
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [c for c in starts if "ray start" in c]
    assert all("RAY_AUTH_MODE=token" in c and "--object-spilling-directory" in c for c in starts)


@needs_crds
@pytest.mark.parametrize("name", [n for n, m in manifests().items() if is_rays(m)])
def test_kuberay_takes_every_field(name):
    against_crd(manifests()[name])


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayVersions"), "2.60.0"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "images"), "x"),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), "none"),
    ],
)
def test_a_field_that_kuberay_does_not_know_is_seen(path, value):
    broken = copy.deepcopy(manifests()["raycluster.yaml[0]"])
    at = broken
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        against_crd(broken)


@pytest.mark.parametrize("name", [n for n, m in manifests().items() if not is_rays(m)])
def test_kubernetes_takes_every_field(name):
    kubernetes_validate.validate(manifests()[name], kubernetes_validate.latest_version(), strict=True)


def test_the_night_runs_on_the_cluster_that_trials_run_on():
    clusters = ray_clusters()
    assert clusters["nightly.yaml[0]"] == clusters["raycluster.yaml[0]"]
    pinned = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().split())
    for spec in clusters.values():
        assert spec["rayVersion"] == pinned["ray"]
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {g["groupName"]: g for g in spec["workerGroupSpecs"]}
        assert groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["enableInTreeAutoscaling"]
        assert all(g["minReplicas"] == 0 < g["maxReplicas"] for g in groups.values())


def test_the_cron_job_makes_the_night_and_never_two():
    found = manifests()
    cron = found["cronjob.yaml[0]"]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    made = {g["name"]: g["files"] for g in documents(KUBERAY / "kustomization.yaml")[0]["configMapGenerator"]}
    assert made[pod["volumes"][0]["configMap"]["name"]] == ["nightly.yaml"]
    accounts = {m["metadata"]["name"] for m in found.values() if m["kind"] == "ServiceAccount"}
    assert pod["serviceAccountName"] in accounts
    assert "generateName" in found["nightly.yaml[0]"]["metadata"]
    night = documents(KUBERAY / "night.yaml")[0]
    assert set(night) <= {"root_uri", *(p.stem for p in (REPO / "jobs").glob("*.py"))}


def test_everything_that_is_named_is_there():
    jobs = {p.stem for p in (REPO / "jobs").glob("*.py")}
    for name, manifest in manifests().items():
        text = json.dumps(manifest)
        assert all(DIGEST.search(i) for i in re.findall(r'"image": "([^"]+)"', text)), name
        assert set(re.findall(r"jobs\.(\w+)", text)) <= jobs
        secrets = set(re.findall(r'"secret(?:Key)?Ref": {"name": "([^"]+)"', text))
        assert secrets <= {m["metadata"]["name"] for m in manifests().values() if m["kind"] == "Secret"}
    listed = documents(KUBERAY / "kustomization.yaml")[0]["resources"]
    assert all((KUBERAY / r).exists() for r in listed)


def test_the_image_has_the_tested_versions_and_no_weights():
    lines = (REPO / "cluster" / "Dockerfile").read_text()
    pinned = dict(line.split("==") for line in (REPO / "constraints.txt").read_text().split())
    assert f"rayproject/ray:{pinned['ray']}-py311-gpu" in lines
    assert "-c constraints.txt" in lines
    assert "USER root" not in lines
    copied = {name for line in re.findall(r"^COPY --chown=ray (.+) \S+$", lines, re.M) for name in line.split()}
    sent = (REPO / "cluster" / "Dockerfile.dockerignore").read_text().split()
    assert sent[0] == "*"
    assert copied == {line[1:] for line in sent if line.startswith("!")}
    assert all((REPO / name).exists() for name in copied)


def test_the_dashboard_draws_what_the_jobs_measure():
    from adbooster import metrics

    board = json.loads((REPO / "cluster" / "grafana.json").read_text())
    drawn = " ".join(t["expr"] for p in board["panels"] for t in p.get("targets", ()))
    measured = set(re.findall(r"^adbooster_\w+", metrics.__doc__, re.M))
    assert set(re.findall(r"ray_(adbooster_\w+)", drawn)) == measured
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    boxes = [p["gridPos"] for p in board["panels"]]
    assert all(b["x"] + b["w"] <= 24 for b in boxes)


def test_constraints_pin_every_dependency():
    lines = (REPO / "constraints.txt").read_text().split()
    assert all("==" in line and "://" not in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    wanted = {"torch", "torchvision", "ray", "diffusers", "transformers", "open-clip-torch", "deltalake", "pytest"}
    assert wanted <= pinned
    assert "torch==2.14.1" in lines
    assert "torchvision==0.29.1" in lines
