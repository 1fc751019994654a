"""KubeRay's and Kubernetes' own definitions allow what is written for them."""

import copy
import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from adbooster.cli import load
from adbooster.night.config import NightlyConfig
from tests.manifests import KUBERAY, RAY_PINNED, documents, only, render

CRDS = os.environ.get("ADBOOSTER_CRDS")
KUBERNETES = "1.31"  # the oldest release that these files ask for


@cache
def crd(kind: str) -> dict:
    definition = yaml.load((Path(CRDS) / f"ray.io_{kind.lower()}s.yaml").read_text(), yaml.CSafeLoader)
    version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1" and v["served"])
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: dict) -> dict:
    """The schema as an API server applies it, but for unknown fields: those it would drop without a word are refused.

    int-or-string fields keep their `anyOf`; what the schema leaves open (x-kubernetes-preserve-unknown-fields) stays open.
    """
    schema = {k: v for k, v in schema.items() if not k.startswith("x-kubernetes-") and k != "format"}
    if "properties" in schema:
        schema["properties"] = {k: closed(v) for k, v in schema["properties"].items()}
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = closed(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        schema["items"] = closed(schema["items"])
    return schema


def problems(manifest: dict) -> list[str]:
    schema = crd(manifest["kind"])
    whole = {k: v for k, v in schema["properties"].items() if k != "metadata"} | {"metadata": {"type": "object"}}
    found = jsonschema.Draft202012Validator(schema | {"properties": whole}).iter_errors(manifest)
    return [f"{'/'.join(map(str, e.path))}: {e.message[:200]}" for e in found]


needs_crds = pytest.mark.skipif(not CRDS, reason="ADBOOSTER_CRDS does not name a folder with KubeRay's definitions")


@needs_crds
@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "nightly-rayjob.yaml"])
def test_manifests_are_what_kuberay_defines(name):
    for document in documents(KUBERAY / name):
        assert not problems(document)


@needs_crds
def test_the_option_of_a_redis_is_what_kuberay_defines():
    over, base = only("gcs-redis/raycluster.yaml"), only("raycluster.yaml")
    assert over["metadata"]["name"] == base["metadata"]["name"]
    assert set(over["spec"]) == {"gcsFaultToleranceOptions"}
    assert not problems(base | {"spec": base["spec"] | over["spec"]})


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/rayClusterSpec/authOptions/mode", "tokens"),
        ("spec/rayClusterSpec/enableInTreeAutoscaling", "yes"),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplica", 3),
        ("spec/rayClusterSpec/workerGroupSpecs/0/groupName", None),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/imagePullPolice", "Always"),
        ("spec/entryPoint", "python"),
        ("spec/backoffLimit", "two"),
    ],
)
def test_a_broken_manifest_is_found(path, value):
    job = copy.deepcopy(only("nightly-rayjob.yaml"))
    at = job
    *way, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    for step in way:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    assert problems(job)


def valid(manifest: dict) -> None:
    """As an API server of KUBERNETES reads it, unknown fields refused."""
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["nightly.yaml", "service-accounts.yaml"])
def test_manifests_are_what_kubernetes_defines(name):
    for document in documents(KUBERAY / name):
        valid(document)


def test_pods_inside_rays_manifests_are_pods():
    for name in ("raycluster.yaml", "rayjob.yaml", "nightly-rayjob.yaml"):
        spec = only(name)["spec"]
        spec = spec.get("rayClusterSpec", spec)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]})


def test_a_broken_schedule_is_found():
    cron = only("nightly.yaml")
    valid(cron)
    for change in ({"concurrencyPolicy": 1}, {"concurencyPolicy": "Forbid"}, {"jobTemplate": {"spec": {}}}):
        with pytest.raises(kubernetes_validate.ValidationError):
            valid(cron | {"spec": cron["spec"] | change})


def test_jobs_run_on_the_cluster_that_stands_beside_them():
    spec = only("raycluster.yaml")["spec"]
    assert spec["rayVersion"] == RAY_PINNED
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    for name in ("rayjob.yaml", "nightly-rayjob.yaml"):
        job = only(name)["spec"]
        assert job["rayClusterSpec"] == spec, "one cluster, written three times"
        module = re.fullmatch(r"python -m (jobs\.\w+) --config /etc/adbooster/night.yaml", job["entrypoint"])[1]
        assert importlib.util.find_spec(module)
        assert job["shutdownAfterJobFinishes"] is True


def test_groups_of_nodes():
    spec = only("raycluster.yaml")["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {g["groupName"]: g for g in spec["workerGroupSpecs"]}
    assert set(groups) == {"gpu", "cpu"}
    for group in groups.values():
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    asked = {n: g["template"]["spec"]["containers"][0]["resources"]["limits"] for n, g in groups.items()}
    assert asked["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in asked["cpu"]
    for group in (spec["headGroupSpec"], *groups.values()):
        assert group["rayStartParams"]["object-spilling-directory"] == "/spill"
        pod = group["template"]["spec"]
        mounted = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert {mounted["/spill"], mounted["/cache"]} <= {v["name"] for v in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"] == "adbooster"


def test_the_schedule():
    cron = only("nightly.yaml")["spec"]
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    accounts = {(d["kind"], d["metadata"]["name"]): d for d in documents(KUBERAY / "service-accounts.yaml")}
    assert ("ServiceAccount", pod["serviceAccountName"]) in accounts
    assert "eks.amazonaws.com/role-arn" in accounts["ServiceAccount", "adbooster"]["metadata"]["annotations"]
    role = accounts["Role", pod["serviceAccountName"]]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}]
    files = {
        g["name"]: g["files"]
        for g in yaml.safe_load((KUBERAY / "kustomization.yaml").read_text())["configMapGenerator"]
    }
    mounted = files[pod["volumes"][0]["configMap"]["name"]]
    assert [Path(p).name for p in pod["containers"][0]["command"][1:]] == list(reversed(mounted))
    assert all((KUBERAY / name).is_file() for names in files.values() for name in names)
    longest = only("nightly-rayjob.yaml")["spec"]["activeDeadlineSeconds"]
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > longest, "Forbid holds while the night may run"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["", "Initializing ", "Running RUNNING", "Complete SUCCEEDED"], 0),
        (["Running RUNNING", "Complete FAILED"], 1),
        (["Running RUNNING", "gone", "Running RUNNING", "Complete SUCCEEDED"], 0),
        (["Retrying FAILED", "Running RUNNING", "Failed FAILED"], 1),
    ],
)
def test_the_scheduled_pod_waits_for_the_night(tmp_path, states, code):
    """A kubectl that answers from a list: what is run is the script of the ConfigMap."""
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    (tmp_path / "kubectl").write_text(
        "#!/bin/sh\ncd $(dirname $0)\n"
        'if [ "$1" = create ]; then echo rayjob.ray.io/adbooster-nightly-x7; exit; fi\n'
        '[ "$2" = rayjob.ray.io/adbooster-nightly-x7 ] || exit 9\n'
        'now=$(head -n 1 states); sed -i 1d states; [ "$now" = gone ] && exit 1; printf \'%s\' "$now"\n'
    )
    (tmp_path / "kubectl").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL_S": "0"}
    done = subprocess.run(["sh", KUBERAY / "nightly.sh", "job.yaml"], env=env, capture_output=True, timeout=30)
    assert done.returncode == code, done
    assert (tmp_path / "states").read_text() == "", "it waited for the end"


def test_the_settings_in_the_folder_are_settings(tmp_path, monkeypatch):
    assert render("cluster/kuberay", tmp_path / "out").returncode == 0
    monkeypatch.setenv("ADBOOSTER_MODELS", "s3://shop/adbooster/models")
    config = load.load(NightlyConfig, ["--config", str(tmp_path / "out" / "night.yaml")])
    assert config.generate.weights == "s3://shop/adbooster/models/stable-diffusion/0123456789abcdef"
    groups = {g["groupName"]: g["maxReplicas"] for g in only("raycluster.yaml")["spec"]["workerGroupSpecs"]}
    assert config.generate.paint.actors * config.generate.paint.gpus <= groups["gpu"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl")
def test_kubectl_puts_the_folder_together_with_all_options(tmp_path):
    out = tmp_path / "out"
    assert render("cluster/kuberay", out).returncode == 0
    (out / "keys" / "storage.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    (out / "gcs-redis" / "redis.env").write_text("REDIS_PASSWORD=c\n")
    folder = out / "kustomization.yaml"
    wanted = yaml.safe_load(folder.read_text())
    wanted["resources"].append("raycluster.yaml")
    wanted["components"] = ["keys", "gcs-redis"]
    folder.write_text(yaml.safe_dump(wanted))
    done = subprocess.run(["kubectl", "kustomize", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}
    standing = made["RayCluster", "adbooster"]
    assert standing["spec"]["gcsFaultToleranceOptions"]["redisAddress"] == "redis:6379"
    refs = {
        ref["secretRef"]["name"]
        for g in (standing["spec"]["headGroupSpec"], *standing["spec"]["workerGroupSpecs"])
        for ref in g["template"]["spec"]["containers"][0]["envFrom"]
    }
    assert {("Secret", name) for name in refs} <= set(made)
    embedded = yaml.safe_load(made["ConfigMap", "adbooster-nightly"]["data"]["nightly-rayjob.yaml"])
    assert embedded["kind"] == "RayJob"
    if CRDS:
        assert not problems(standing)
        assert not problems(embedded)
