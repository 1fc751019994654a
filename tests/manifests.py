"""The files for clusters: where they lie, and with their places filled."""

import subprocess
import sys
from pathlib import Path

import yaml

REPO = Path(__file__).parents[1]
KUBERAY = REPO / "cluster" / "kuberay"
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
