"""A night of 2,000 products x 30 cohorts that has neither the time nor the budget for it: what it leaves, and what that costs.

    python -m tests.benchmarks.night --quick

The tiny models paint in earnest. The first night may use a GPU-hour budget, the second night has a deadline; each reports
what it left, and here that is counted again from the tables. The ratio is the share of the time it was given that a night
painted: 1 is all of it. Exit code 1 if a count differs, or a night painted longer than it was given.
"""

import argparse
import io
import json
import platform
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pap
import ray
import torch

from adbooster.night.config import NightlyConfig, NightlyReport
from adbooster.night.job import nightly
from adbooster.painting import requests
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.benchmarks.prepare import shop

TINY = Path(world.__file__).parent
COHORTS = 30
OVER = 1.1  # a batch may take longer than the longest before it


def settings(root: str, feed: Path, run_id: str, **limits) -> NightlyConfig:
    recipe = {"candidates": 2, "num_inference_steps": 8, "guidance_scale": 3.0, "size_px": 256, "paint_px": 256}
    return NightlyConfig.model_validate(
        {
            "root_uri": root,
            "run_id": run_id,
            "prepare": {
                "feed_uri": str(feed),
                "mask_model": str(TINY / "models/mask/u2netp.onnx"),
                "caption_model": str(TINY / "models/caption"),
                "device": "cpu",
                "max_reject_share": 1,
            },
            "cohorts": {"cohorts_uri": str(TINY / "profiles.yaml")},
            "generate": {
                "weights": str(TINY / "models/outpaint"),
                "rank_model": str(TINY / "models/rank"),
                "device": "cpu",
                "dtype": "bfloat16",
                "threads": 2,
                "recipe": recipe,
                "min_coverage": 0,
                "publish_s": 10,
                "gallery": 30,
            },
            **limits,
        }
    )


def night(config: NightlyConfig, told: str) -> tuple[NightlyReport, float]:
    started = time.perf_counter()
    report = nightly(config)
    seconds = time.perf_counter() - started
    g = report.generate
    print(
        f"{config.run_id}, {told}: {seconds:.1f} s, of them prepare {report.prepare.seconds}, generate {g.seconds}; "
        f"{g.requests} requests, {g.already_live} live before, {g.painted} painted in {g.gpu_s} s, "
        f"{g.left} left by {g.stopped}: {g.left_by_value}",
        flush=True,
    )
    return report, seconds


def counted(config: NightlyConfig, report: NightlyReport) -> bool:
    """Whether live and left are all requests, each once, as the report says."""
    root, g = Root(config.root_uri), report.generate
    live = tables.read(root, "creatives").filter(pc.equal(tables.read(root, "creatives")["rank"], 0))
    left = pap.read_table(io.BytesIO(root.read(f"runs/{config.run_id}/left.parquet")))
    ids = set(live["request_id"].to_pylist()), set(left["request_id"].to_pylist())
    same = len(ids[1]) == left.num_rows == g.left == sum(g.left_by_value.values())
    whole = not ids[0] & ids[1] and len(ids[0]) + len(ids[1]) == g.requests
    asked = requests.usable_products(tables.read(root, "samples")).num_rows * COHORTS
    print(f"counted: {len(ids[0])} live + {len(ids[1])} left = {asked} asked for", flush=True)
    return same and whole and asked == g.requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="200 products instead of 2,000")
    quick = parser.parse_args().quick
    products, budget_s, time_s = (200, 20, 60) if quick else (2000, 60, 150)
    print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__}))
    with tempfile.TemporaryDirectory(prefix="adb", dir="/tmp") as scratch:
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _temp_dir=f"{scratch}/ray")
        root, feed = f"{scratch}/root", shop(Path(scratch), products, cut_out_share=1.0)
        first = settings(root, feed, "first", gpu_hours=budget_s / 3600)
        one, _ = night(first, f"a budget of {budget_s} s")
        good = counted(first, one) and one.generate.gpu_s <= budget_s * OVER
        ends = datetime.now().astimezone() + timedelta(seconds=time_s)
        second = settings(root, feed, "second", deadline=ends.isoformat())
        two, seconds = night(second, f"a deadline after {time_s} s")
        good = counted(second, two) and good and seconds <= time_s * OVER
        ray.shutdown()
    print(f"ratio {one.generate.gpu_s / budget_s:.2f}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
