"""What is written for clusters is valid where it will be read."""

import copy
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

from adbooster import cli, nightly

REPO = Path(__file__).parents[1]
KUBERAY = REPO / "cluster" / "kuberay"
CRDS = os.environ.get("ADBOOSTER_CRDS")
MANIFESTS = sorted(p for p in KUBERAY.rglob("*.yaml") if p.name not in ("kustomization.yaml", "night.yaml"))
DIGEST = "sha256:" + "0123456789abcdef" * 4
VALUES = {
    "image": f"shop/adbooster@{DIGEST}",
    "kubectl-image": f"shop/kubectl@{DIGEST}",
    "root-uri": "s3://shop/adbooster",
    "feed-uri": "s3://shop/feed.tsv",
    "cohorts-uri": "s3://shop/cohorts.yaml",
    "role-arn": "arn:aws:iam::111122223333:role/adbooster",
    "redis-address": "redis:6379",
    "region": "eu-west-1",
    "instance-profile": "adbooster",
    **{name: f"{name}/0123456789abcdef" for name in ("u2net", "blip", "stable-diffusion", "clip")},
}
RAY_PINNED = next(
    line.removeprefix("ray==") for line in (REPO / "constraints.txt").read_text().split() if line.startswith("ray==")
)


def render(source: str, out: Path, **changes: str | None) -> subprocess.CompletedProcess:
    script = [sys.executable, REPO / "cluster" / "render.py"]
    places = subprocess.run([*script, REPO / source], capture_output=True, text=True, check=True).stdout.split()
    values = {name: VALUES[name] for name in places} | {k.replace("_", "-"): v for k, v in changes.items()}
    given = [f"{name}={value}" for name, value in values.items() if value is not None]
    return subprocess.run([*script, REPO / source, "--out", out, *given], capture_output=True, text=True)


def documents(path: Path) -> list[dict]:
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def only(name: str) -> dict:
    return documents(KUBERAY / name)[0]


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


# --- KubeRay ---


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
    config = cli.load(nightly.NightlyConfig, ["--config", str(tmp_path / "out" / "night.yaml")])
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
    text = (REPO / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python (cluster/render\.py) (\S+) --out \S+ (.*)$", text, re.MULTILINE)
    assert {source for _, source, _ in commands} == {"ray_cluster.yaml", "cluster/kuberay"}
    for script, source, values in commands:
        listed = subprocess.run([sys.executable, REPO / script, REPO / source], capture_output=True, text=True).stdout
        assert {value.split("=")[0] for value in values.split()} == set(listed.split())
