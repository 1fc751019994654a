"""A year of nights in simulation: does any figure of a night grow with the number of nights before it?

    python -m tests.benchmarks.year --out year [--quick] [--products 20000 --cohorts 30 --nights 365]

Everything that a driver does is real: nights with their lock, settings and state, tables, plans, staged parts, commits, pages,
vacuum every week. Painting, fetching and masking are replaced by constant files. Products come, go and change, cohorts come and
go, weights change every month and the recipe twice; one night in twenty is stopped: with samples staged, with half of
its creatives staged, or between the files and the commit. The same command goes on where a former one was stopped.

--out gets nights.csv, nights.jsonl, year.svg and summary.json, which is the last line of stdout too.
"""

import argparse
import csv
import json
import logging
import platform
import statistics
import time
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from tests.benchmarks.year_meter import Memory, Requests, move_clock, run_with_clock, stamp, walk
from tests.benchmarks.year_plot import plot

DAY_S = 86400
VACUUM_EVERY, RETENTION = 7, timedelta(days=14)
FIGURES = ("seconds", "cpu_s", "memory_mb", "peak_mb", "files_live", "files_on_disk", "table_mb", "requests")


def settings(root: Path, shop: Any, tonight: Any, run_id: str) -> Any:
    from adbooster.night.config import NightlyConfig
    from tests.benchmarks.year_world import MODELS

    return NightlyConfig.model_validate(
        {
            "root_uri": str(root),
            "run_id": run_id,
            "isolate": "inline",
            "train": {"rule": "never"},
            "prepare": {
                "feed_uri": str(shop.feed()),
                "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
                "caption_model": str(MODELS / "caption"),
                "device": "cpu",
            },
            "cohorts": {"cohorts_uri": str(shop.cohort_file())},
            "generate": {
                "weights": str(shop.weights(tonight.weights)),
                "rank_model": str(MODELS / "rank"),
                "device": "cpu",
                "dtype": "float32",
                "recipe": {"candidates": 1, "size_px": 256, "paint_px": 256, "guidance_scale": 5.0 + tonight.recipe},
            },
        }
    )


def night(root: Path, config: Any, stages: Any, crash: str, requests: Requests) -> dict[str, Any]:
    """One night from its lock to its report, and what it cost the driver."""
    from adbooster.cli.run import run
    from tests.benchmarks.year_stages import Killed, spent

    stages.crash, stages.seconds, stages.cpu_s = crash, 0.0, 0.0
    requests.watch()
    requests.of_tonight()
    memory, began, report = Memory(), spent(), None
    try:
        report = run(config, "adbooster.night.job:nightly")
    except Killed:
        assert crash, "only a night that is to be stopped is"
    seconds, cpu_s = (end - begin for end, begin in zip(spent(), began, strict=True))
    asked = requests.of_tonight()
    now, peak = memory.now_and_peak()
    made = getattr(report, "generate", None)
    return {
        "crash": crash,
        "seconds": round(seconds - stages.seconds, 3),
        "cpu_s": round(cpu_s - stages.cpu_s, 3),
        "memory_mb": round(now, 1),
        "peak_mb": round(peak, 1),
        "requests": sum(asked.values()),
        **asked,
        "to_paint": made and made.to_paint,
        "already_staged": made and made.already_staged,
        "published": made and made.published,
        "live": made and made.already_live,
    }


def vacuumed(root: Path, requests: Requests) -> dict[str, Any]:
    from adbooster.storage.objects import Root
    from adbooster.storage.vacuum import vacuum

    before, memory, began = sum(1 for _ in walk(root)), Memory(), time.monotonic()
    requests.of_tonight()
    vacuum(Root(str(root)), RETENTION)
    seconds, asked = time.monotonic() - began, requests.of_tonight()
    found = [entry.stat().st_size for entry in walk(root)]
    return {
        "vacuum_seconds": round(seconds, 3),
        "vacuum_peak_mb": round(memory.now_and_peak()[1], 1),
        "vacuum_requests": sum(asked.values()),
        "vacuum_files": before - len(found),
        "root_files": len(found),
        "root_mb": round(sum(found) / 1e6, 1),
    }


def stored(root: Path) -> dict[str, Any]:
    """What lies below tables/, and of that what the live versions need; the whole root is only walked with a vacuum."""
    from adbooster.storage import tables
    from adbooster.storage.objects import Root

    found = [(e.name, e.stat().st_size) for e in walk(root / "tables")]
    opened = [tables.open_table(Root(str(root)), name) for name in tables.TABLES]
    return {
        "files_live": sum(len(table.file_uris()) for table in opened if table),
        "files_on_disk": sum(name.endswith(".parquet") for name, _ in found),
        "log_files": sum(name.endswith(".json") for name, _ in found),
        "table_mb": round(sum(size for _, size in found) / 1e6, 3),
    }


def ratios(nights: list[dict[str, Any]], of: Any) -> dict[str, float] | None:
    """The last 30 nights over those from 30 to 60, by `of` the nights' figures; None for a year that is too short."""
    if len(nights) < 90:
        return None
    last, first = nights[-30:], nights[30:60]
    return {name: round(of(n[name] for n in last) / max(1e-9, of(n[name] for n in first)), 3) for name in FIGURES}


def summary(given: argparse.Namespace, nights: list[dict[str, Any]], versions: dict[str, str]) -> dict[str, Any]:
    from tests.benchmarks.year_stages import NOTE

    vacuums = [n for n in nights if "vacuum_seconds" in n]
    checked = checked_whole(given.out / "root")
    return {
        "benchmark": "year",
        "note": NOTE,
        "requests_are": " ".join((Requests.__doc__ or "").split()),
        "products": given.products,
        "cohorts": given.cohorts,
        "nights": len(nights),
        "crashed": sum(bool(n["crash"]) for n in nights),
        "last30_over_30to60": ratios(nights, statistics.median),
        "last30_over_30to60_of_the_most": ratios(nights, max),
        "medians_of_the_last_30": {f: round(statistics.median(n[f] for n in nights[-30:]), 3) for f in FIGURES},
        "most": {f: max(n[f] for n in nights) for f in FIGURES},
        "last_vacuum": {k: v for k, v in (vacuums or [{}])[-1].items() if k.startswith(("vacuum_", "root_"))},
        "fsck": checked,
        "versions": versions,
    }


def checked_whole(root: Path) -> dict[str, Any] | None:
    """What `adbooster fsck` finds wrong at the end of the year; None before there was one."""
    if not find_spec("adbooster.report.fsck"):
        return None
    from adbooster.storage.objects import Root

    found = resolve_name("adbooster.report.fsck:fsck")(Root(str(root)))
    return {"problems": found.problems, "objects": found.objects, "unnamed": found.unnamed}


def simulate(given: argparse.Namespace, nights: list[dict[str, Any]]) -> None:
    """Go on after `nights`, which grow by one a night, in memory and in nights.jsonl."""
    from tests.benchmarks.year_stages import Stages
    from tests.benchmarks.year_world import Shop

    root, shop = given.out / "root", Shop(given.out / "shop", given.products, given.cohorts, given.nights)
    begun, requests, stages = _begun(given), Requests(root / "tables"), Stages()
    for _ in nights:
        shop.advance()
    with (given.out / "nights.jsonl").open("a") as out:
        for number in range(len(nights), given.nights):
            tonight, at = shop.advance(), begun + number * DAY_S
            move_clock(at)
            run_id = f"{datetime.fromtimestamp(at, UTC):%Y%m%d}-{number:03}"
            row: dict[str, Any] = {"night": number, "recipe": tonight.recipe, "weights": tonight.weights}
            row |= night(root, settings(root, shop, tonight, run_id), stages, tonight.crash, requests)
            stamp(root / "tables")
            if number % VACUUM_EVERY == VACUUM_EVERY - 1:
                row |= vacuumed(root, requests)
            row |= stored(root)
            nights.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            shown = (f"{name} {row[name]}" for name in (*FIGURES, "to_paint", "crash", "vacuum_files") if row.get(name))
            print(f"night {number}: {', '.join(shown)}", flush=True)


def _begun(given: argparse.Namespace) -> float:
    """When the first night was: so long ago that the last is over. Kept, so that a year that goes on has one calendar."""
    file = given.out / "year.json"
    wanted = {name: getattr(given, name) for name in ("products", "cohorts", "nights")}
    if not file.exists():
        file.write_text(json.dumps(wanted | {"begun": time.time() - (given.nights + 1) * DAY_S}))
    known = json.loads(file.read_text())
    begun = known.pop("begun")
    if known != wanted:
        raise SystemExit(f"{file} is of another year: {known}; give another --out")
    return begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="a folder; one of a year that was stopped goes on")
    parser.add_argument("--quick", action="store_true", help="90 nights of 60 products x 4 cohorts")
    parser.add_argument("--products", type=int, default=20_000)
    parser.add_argument("--cohorts", type=int, default=30)
    parser.add_argument("--nights", type=int, default=365)
    given = parser.parse_args()
    if given.quick:
        given.products, given.cohorts, given.nights = 60, 4, 90
    run_with_clock()
    logging.getLogger("adbooster").setLevel("ERROR")
    import deltalake
    import pyarrow

    given.out.mkdir(parents=True, exist_ok=True)
    given.out = given.out.absolute()
    file = given.out / "nights.jsonl"
    nights = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    simulate(given, nights)
    versions = {"python": platform.python_version(), "deltalake": deltalake.__version__, "pyarrow": pyarrow.__version__}
    told = summary(given, nights, versions)
    names = list(dict.fromkeys(name for row in nights for name in row))
    with (given.out / "nights.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(nights)
    (given.out / "year.svg").write_text(plot(nights, FIGURES))
    (given.out / "summary.json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told))
    if told["fsck"] and told["fsck"]["problems"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
