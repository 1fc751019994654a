"""Planning an unchanged night of a large catalog: seconds, and the peak memory of the process that plans it.

    python -m tests.benchmarks.feed_scale --products 100000

Three pictures a product. A feed and a table of samples that match it are made first, in a process of their own; nothing
is fetched. The last line is one JSON object.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.prepare.changes import fingerprint
from adbooster.prepare.config import PrepareConfig
from adbooster.prepare.plan import Plan
from adbooster.storage import buckets
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"
PICTURES = 3


def settings(folder: Path) -> PrepareConfig:
    return PrepareConfig.model_validate(
        {
            "root_uri": str(folder / "root"),
            "run_id": "night",
            "feed_uri": str(folder / "feed.tsv"),
            "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
            "caption_model": str(MODELS / "caption"),
            "device": "cpu",
        }
    )


def write_feed(path: Path, products: int) -> None:
    with path.open("w") as feed:
        feed.write("id\ttitle\timage_link\tadditional_image_link\tbrand\tgoogle_product_category\tavailability\n")
        for i in range(products):
            links = [f"https://cdn{i % 5}.shop.example/images/2026/{i}-{n}.jpg" for n in range(PICTURES)]
            feed.write(f"SKU-{i}\tAurora running shoe number {i} in blue\t{links[0]}\t{','.join(links[1:])}\t")
            feed.write("Aurora\tApparel & Accessories > Shoes\tin_stock\n")


def made(row: dict, plan: Plan) -> dict:
    """A finished sample of a picture of the feed."""
    sha256 = digest(row["sample_id"], "photo")
    values = {
        "photo_uri": f"objects/{sha256[:2]}/{sha256}.photo",
        "photo_sha256": sha256,
        "etag": f'"{sha256[:32]}"',
        "last_modified": "Wed, 25 Nov 2026 22:00:00 GMT",
        "width": 1080,
        "height": 1080,
        "mask_uri": f"objects/{sha256[2:4]}/{sha256}.png",
        "mask_by": plan.made.mask,
        "mask_how": "matting",
        "mask_area_share": 0.3,
        "mask_border_share": 0.0,
        "mask_pieces": 1,
        "mask_unsure_share": 0.0,
        "outside_deviation": 2.0,
        "caption": "a blue running shoe on a white background",
        "caption_by": plan.made.caption,
        "background": "plain",
        "fingerprint": fingerprint(row, sha256, plan.made),
    }
    return row | values


def write_table(folder: Path) -> None:
    """The night before: every picture of the feed is a finished sample."""
    with tempfile.TemporaryDirectory() as spilled:
        plan = Plan(settings(folder), Path(spilled))
        with buckets.Change(plan.root, "samples", None, "sample_id", plan.live.parts) as change:
            for part in plan:
                wanted, tables = part.changes.wanted, []
                for at in range(0, wanted.num_rows, 65_536):
                    rows = [made(row, plan) for row in wanted.slice(at, 65_536).to_pylist()]
                    tables.append(pa.Table.from_pylist(rows, schema.SAMPLES))
                change.replace(part.part, pa.concat_tables(tables))
            change.commit({"run_id": "night-before"})


def plan_only(folder: Path) -> None:
    """In a process of its own: plan the night; print what it took."""
    before, started, counts, parts = peak_gib(), time.perf_counter(), [0, 0, 0], 0
    with tempfile.TemporaryDirectory() as spilled:
        plan = Plan(settings(folder), Path(spilled))
        read_s, spilled_gib = time.perf_counter() - started, size_gib(Path(spilled))
        for part in plan:
            parts += 1
            counts = [a + b for a, b in zip(counts, part.changes.counts(), strict=True)]
            counts[1] += part.changes.revalued(part.live, schema.SAMPLES.empty_table()).num_rows
        planned_s = time.perf_counter() - started
        assert counts == [0, 0, plan.feed.pictures], counts
    print(
        json.dumps(
            {
                "plan_s": round(planned_s, 1),
                "peak_gib": round(peak_gib(), 2),
                "pictures": counts[2],
                "read_s": round(read_s, 1),
                "spilled_gib": round(spilled_gib, 2),
                "parts": parts,
                "before_gib": round(before, 2),
            }
        )
    )


def size_gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def alone(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.feed_scale", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write or args.plan:
        return write_table(args.write) if args.write else plan_only(args.plan)
    with tempfile.TemporaryDirectory() as made_in:
        folder, started = Path(made_in), time.perf_counter()
        write_feed(folder / "feed.tsv", args.products)
        alone("--write", str(folder))
        feed_gib, table_gib = (folder / "feed.tsv").stat().st_size / 2**30, size_gib(folder / "root")
        print(f"{platform.machine()}, Python {platform.python_version()}, pyarrow {version('pyarrow')}")
        print(f"{args.products:,} products x {PICTURES} pictures: feed {feed_gib:.2f} GiB, table {table_gib:.2f} GiB")
        print(f"made in {time.perf_counter() - started:.0f} s", flush=True)
        found = json.loads(alone("--plan", str(folder)).splitlines()[-1])
    print(
        f"feed read in {found['read_s']} s, planned in {found['plan_s']} s, in {found['parts']} parts, {found['spilled_gib']} GiB spilled"
    )
    print(f"peak memory {found['peak_gib']} GiB, {found['before_gib']} of them before")
    print(json.dumps({"products": args.products} | found))


if __name__ == "__main__":
    main()
