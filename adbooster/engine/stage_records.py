"""The stage times that runs have left below a root (`runs/<run_id>/stages.json`), without Ray."""

import json
from collections.abc import Iterable

from adbooster.storage.objects import Root

FILE = "stages.json"
RUNS = 30  # newest runs that are looked through for measured times


def read(root: Root, run_id: str) -> dict[str, dict[str, dict]]:
    """The times of a run's stages by job; empty where there are none."""
    try:
        return json.loads(root.read(f"runs/{run_id}/{FILE}"))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def newest(root: Root, job: str, stages: Iterable[str]) -> tuple[str, dict[str, dict]] | None:
    """The newest run of which each of these stages has measured rows, and its times; None where there is none."""
    for run_id in sorted(root.folders("runs"), reverse=True)[:RUNS]:
        found = read(root, run_id).get(job, {})
        if all(found.get(name, {}).get("rows") for name in stages):
            return run_id, found
    return None
