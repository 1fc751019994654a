"""Planning, anti-join, merge and an unchanged night at any number of requests, on tables that are made up; nothing is painted.

    python -m tests.benchmarks.scale --requests 1000000 [--root FOLDER]

Every step is a process of its own, so that its peak memory is its own:

build      a feed's samples and the creatives of all requests, written part by part (not counted)
name       the first night of that catalog: every request is named and none is live (generate.plan.NightPlan)
unchanged  a night in which nothing has changed: jobs.generate's function from begin to end, its page too
changed    2 % of the products have a new photo, and a killed run has painted what follows: the same, which publishes it

With --engines the anti-join alone, of all live requests with themselves: Arrow part by part, as a night does it, and
DuckDB (2 GiB, two threads) and Polars (streaming) over the whole table at once; the ratio is their time over Arrow's.

What is made up: samples (one picture a product), cohorts, scores and hashes of creatives, and their files, which are
not there. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap
from deltalake import DeltaTable

from adbooster.contracts import schema
from adbooster.generate.config import GenerateConfig
from adbooster.generate.job import generate
from adbooster.generate.plan import NightPlan, without
from adbooster.painting.requests import revisions, staged_folder
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import Change, Snapshot
from adbooster.storage.objects import Root
from tests.conftest import MODELS

ENGINES = ["arrow", "duckdb", "polars"]
COHORTS, CHURN, STAGED_ROWS = 30, 0.02, 64
WORDS = ("shoe", "coat", "mug", "watch", "bag", "lamp", "chair", "racket", "kettle", "scarf")
RECIPE = {"size_px": 512, "gates": {"min_background_distance": 8}}


def config(root: Root, run_id: str) -> GenerateConfig:
    return GenerateConfig(
        root_uri=root.uri,
        run_id=run_id,
        weights=str(MODELS / "outpaint"),
        rank_model=str(MODELS / "rank"),
        device="cpu",
        dtype="float32",
        recipe=RECIPE,
        gallery=0,
    )


def filled(wanted: pa.Schema, rows: int, **columns) -> pa.Table:
    """A table of these columns; what is not given is null, and one value stands for all rows."""
    given = {
        name: value
        if isinstance(value, pa.Array | pa.ChunkedArray)
        else pa.repeat(pa.scalar(value, wanted.field(name).type), rows)
        for name, value in columns.items()
    }
    return schema.fill(pa.table(given), wanted)


def texts(form: str, numbers: np.ndarray) -> pa.Array:
    before, after = form.split("{}")
    return pc.binary_join_element_wise(before, pa.array(numbers).cast(pa.string()), after, "")


def hexes(draw: np.random.Generator, rows: int, digits: int) -> pa.Array:
    found = draw.bytes(rows * digits // 2).hex()
    return pa.array([found[i : i + digits] for i in range(0, len(found), digits)], pa.string())


def objects(names: pa.Array, extension: str) -> pa.Array:
    return pc.binary_join_element_wise(
        "objects", pc.utf8_slice_codeunits(names, 0, 2), pc.binary_join_element_wise(names, extension, "."), "/"
    )


def samples(numbers: np.ndarray, draw: np.random.Generator) -> pa.Table:
    """One main picture a product."""
    rows = len(numbers)
    photo, mask = hexes(draw, rows, 64), hexes(draw, rows, 64)
    words = pa.array(WORDS).take(pa.array(numbers % len(WORDS)))
    return filled(
        schema.SAMPLES,
        rows,
        sample_id=texts("s{}", numbers),
        product_id=texts("P{}", numbers),
        role="main",
        title=pc.binary_join_element_wise(words, texts("model {} in red", numbers), " "),
        caption=pc.binary_join_element_wise("a red", words, texts("with {} stripes", numbers % 1000), " "),
        category="Clothing > Sport",
        brand=texts("brand {}", numbers % 500),
        photo_sha256=photo,
        photo_uri=objects(photo, "png"),
        mask_uri=objects(mask, "png"),
        fingerprint=photo,
    )


def cohorts(root: Root) -> None:
    numbers = np.arange(COHORTS)
    rows = filled(
        schema.COHORTS,
        COHORTS,
        cohort_id=texts("c{}", numbers),
        family=texts("family {}", numbers % 3),
        query=texts("things for trips number {}", numbers),
        context=texts("a winter day in the mountains, {} degrees", numbers),
        size=pa.array(numbers + 100),
    )
    tables.merge(root, "cohorts", rows, "cohort_id", None, {})


def creatives(
    wanted: pa.Schema, requests: pa.Table, draw: np.random.Generator, run_id: str, recipe_id: str
) -> pa.Table:
    """What a painter might have made of requests."""
    rows, ids = requests.num_rows, requests["request_id"].combine_chunks()
    scores = draw.normal(0.3, 0.03, (2, rows)).astype(np.float32)
    kept = ("request_id", "product_id", "cohort_id", "placement", "prompt", "negative_prompt", "prompt_style", "text")
    gates = pa.scalar({"product_max_diff": 0, "people": 0.1}, schema.GATES)
    more = {"round": requests["round"], "paint_batch": 16} if "round" in wanted.names else {}
    return filled(
        wanted,
        rows,
        **{name: requests[name] for name in kept},
        creative_id=pc.utf8_slice_codeunits(ids, 0, 16),
        photo_sha256=requests["photo_sha256"],
        rank=0,
        seed=pa.array(draw.integers(0, 2**62, rows)),
        layout={"x_px": 90, "y_px": 200, "width_px": 300, "height_px": 200},
        recipe_id=recipe_id,
        weights_revision="w" * 16,
        clip_score=pa.array(scores[0]),
        neutral_score=pa.array(scores[1] - 0.05),
        margin=pa.array(scores[0] - scores[1] + 0.05),
        gates=gates,
        fallback=False,
        background_phash=hexes(draw, rows, 16),
        background_simhash=hexes(draw, rows, 64),
        uri=objects(ids, "webp"),
        sha256=ids,
        width=512,
        height=512,
        size_bytes=200_000,
        gpu_s=0.4,
        run_id=run_id,
        **more,
    )


def build(root: Root, products: int) -> None:
    draw, recipe = np.random.default_rng(0), revisions(config(root, "build"))[1]
    cohorts(root)
    every = samples(np.arange(products), draw)
    divided = buckets.parts(products)
    own = buckets.numbers(every["product_id"])
    with Change(root, "samples", None, "sample_id", divided) as change:
        for part in divided:
            change.replace(part, every.filter(part.has(own)))
        change.commit({})
    with (
        NightPlan(config(root, "build"), root) as night,
        Change(root, "creatives", None, "creative_id", night.parts) as change,
    ):
        for part in night.parts:
            change.replace(part, creatives(schema.CREATIVES, night.missing(part), draw, "build", recipe))
        change.commit({"run_id": "build", "recipe_id": recipe})


def name(root: Root) -> dict:
    """The creatives' table is out of the way meanwhile."""
    live, aside = Path(root.path("tables/creatives")), Path(root.path("creatives-aside"))
    live.rename(aside)
    try:
        began = time.monotonic()
        with NightPlan(config(root, "name"), root) as night:
            return {"seconds": time.monotonic() - began, "to_paint": night.to_paint, "parts": len(night.parts)}
    finally:
        aside.rename(live)


def unchanged(root: Root) -> dict:
    before = tables.version(root, "creatives")
    began = time.monotonic()
    with NightPlan(config(root, "plan"), root) as night:
        planned = time.monotonic() - began
        asked = night.requests
    began = time.monotonic()
    report = generate(config(root, "unchanged"))
    seconds = time.monotonic() - began
    assert (report.to_paint, report.creatives_version, report.coverage, report.already_live) == (0, before, 1.0, asked)
    return {"seconds": seconds, "plan_s": planned, "requests": asked}


def changed(root: Root, products: int) -> dict:
    version = tables.version(root, "samples")
    draw, settings = np.random.default_rng(version), config(root, f"changed-{version}")
    some = np.sort(draw.choice(products, max(1, round(products * CHURN)), replace=False))
    tables.merge(root, "samples", samples(some, draw), "sample_id", tables.version(root, "samples"), {})
    recipe, staged = revisions(settings)[1], 0
    began = time.monotonic()
    with NightPlan(settings, root) as night:
        planned = time.monotonic() - began
        for rows in night.unpainted(night.staged):
            made = creatives(schema.STAGED, rows, draw, f"killed-{version}", recipe)
            for at in range(0, made.num_rows, STAGED_ROWS):
                buffer = pa.BufferOutputStream()
                pap.write_table(made.slice(at, STAGED_ROWS), buffer)
                root.write(
                    f"{staged_folder(f'killed-{version}', recipe)}/{staged:08d}.parquet", buffer.getvalue().to_pybytes()
                )
                staged += 1
    began = time.monotonic()
    report = generate(settings)
    seconds = time.monotonic() - began
    assert report.to_paint == 0
    assert report.published + report.repainted_duplicates >= len(some) * COHORTS
    return {"seconds": seconds, "plan_s": planned, "published": report.published, "staged_parts": staged}


def join(root: Root, engine: str) -> dict:
    """Seconds of the anti-join of all live requests with themselves; nothing is left."""
    table = DeltaTable(f"{root.uri}/tables/creatives")
    files = [name.removeprefix("file://") for name in table.file_uris()]
    began = time.monotonic()
    if engine == "arrow":
        live, left = Snapshot(root, "creatives", table.version(), most=config(root, "x").part_rows), 0
        for part in live.parts:
            ids = live.read(part, ["request_id"])
            left += without(live.read(part, ["request_id"]), ids).num_rows
    elif engine == "duckdb":
        with duckdb.connect(config={"memory_limit": "2GiB", "threads": 2}) as db:
            rows = f"(SELECT request_id FROM read_parquet({files}))"
            ((left,),) = db.sql(f"SELECT count(*) FROM {rows} a ANTI JOIN {rows} b USING (request_id)").fetchall()
    else:
        rows = polars.scan_parquet(files).select("request_id")
        left = rows.join(rows, on="request_id", how="anti").select(polars.len()).collect(engine="streaming").item()
    assert left == 0
    return {"seconds": time.monotonic() - began}


def step(kind: str, root: Root, products: int) -> dict:
    done = {"build": lambda: build(root, products), "name": lambda: name(root)}
    done |= {"unchanged": lambda: unchanged(root), "changed": lambda: changed(root, products)}
    done |= {engine: partial(join, root, engine) for engine in ENGINES}
    found = done[kind]() or {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in found.items()} | {"peak_gib": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=float, default=1e5)
    parser.add_argument("--root", help="a folder that is empty, or was made by this before; kept")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--engines", action="store_true", help="measure the anti-join by three engines too")
    given = parser.parse_args()
    products = max(1, round(given.requests / COHORTS))
    if given.step:
        print(json.dumps(step(given.step, Root(given.root), products)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="adbooster-scale-") as folder:
        root, found = Root(given.root or folder), {}
        steps = ["build"] * (tables.version(root, "creatives") is None) + ["name", "unchanged", "changed"]
        steps += ENGINES if given.engines else []
        for kind in steps:
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--step", kind, "--root", root.uri]
            began = time.monotonic()
            done = subprocess.run(
                [*command, "--requests", str(given.requests)], stdout=subprocess.PIPE, text=True, check=True
            )
            found[kind] = json.loads(done.stdout.splitlines()[-1])
            print(f"{kind:>10} {time.monotonic() - began:8.1f} s in all  {found[kind]}", flush=True)
        size = sum(stat.size_bytes for stat in root.stats("tables/creatives").values())
    for engine in ENGINES if given.engines else []:
        ratio = found[engine]["seconds"] / found["arrow"]["seconds"]
        print(
            f"anti-join by {engine:>6}: {found[engine]['seconds']:6.1f} s, {found[engine]['peak_gib']:.2f} GiB, ratio {ratio:.2f}"
        )
    versions = {name: metadata.version(name) for name in ("pyarrow", "deltalake", "duckdb", "polars")}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(
        json.dumps(
            {
                "requests": products * COHORTS,
                "plan_s": found["name"]["seconds"],
                "plan_unchanged_s": found["unchanged"]["plan_s"],
                "unchanged_night_s": found["unchanged"]["seconds"],
                "merge_s": found["changed"]["seconds"],
                "merged": found["changed"]["published"],
                "table_bytes": size,
                "peak_gib": max(one["peak_gib"] for kind, one in found.items() if kind != "build"),
            }
        )
    )


if __name__ == "__main__":
    main()
