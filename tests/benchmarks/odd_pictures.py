"""A survey: odd pictures through prepare, one row each.

    python -m tests.benchmarks.odd_pictures                     3,000 pictures through the stages, in two processes
    python -m tests.benchmarks.odd_pictures --job               the same through jobs.prepare, on Ray, as rows of a feed

Pictures of every format that Pillow writes, in every mode, from 1 pixel to tens of megapixels, long strips, of what breaks
matting (checkerboards, noise, one colour, nothing but transparency); two in three are mutated. The real U2-Net-p masks
them. Printed: what became of how many, pictures/s, the largest memory of a worker; last, the same as a line of JSON.
Exit code 1 if a picture is not one row, raised anything, or ended a process.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, takewhile
from pathlib import Path

import psutil
import yaml

from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world
from tests.fuzz import mutations
from tests.pictures.preparing import ENDED, Outcome, prepared

MODELS = Path(world.__file__).parent / "models"
WHOLE_SHARE, LARGE_EVERY = 1 / 3, 150
SIDES = (1, 2, 3, 7, 16, 17, 31, 64, 200, 256, 256, 256, 321, 640)
STRIPS = ((1, 20_000), (20_000, 1), (16, 4000), (4000, 20), (200, 9000))
LARGE = ((4000, 4000), (8000, 3000), (6000, 6000), (300, 60_000))
FAST = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")


def pictures(seed: int) -> Iterator[bytes]:
    """Endless, the same for a seed."""
    rng, formats, earlier = random.Random(seed), mutations.formats(), [b"GIF89a"]
    for number in range(10**9):
        kind = formats[number % len(formats)]
        size = rng.choice(STRIPS) if number % 20 == 7 else (rng.choice(SIDES), rng.choice(SIDES))
        if number % LARGE_EVERY == 11:
            kind, size = rng.choice(FAST), rng.choice(LARGE)
        picture = mutations.drawn(rng, rng.choice(mutations.CONTENTS), *size)
        content = None
        for mode in rng.sample(mutations.MODES, len(mutations.MODES)):
            if content := mutations.written(rng, mutations.in_mode(picture, mode), kind):
                break
        if content is None:  # a format that is read only, or without pixels
            content = mutations.written(rng, picture.convert("RGB"), rng.choice(FAST)) or b""
        if rng.random() > WHOLE_SHARE:
            content = mutations.mutated(rng, content, rng.choice(earlier))
        if len(content) < 100_000:
            earlier = [*earlier[-50:], content]
        yield content


def write(folder: Path, number: int, seed: int) -> list[str]:
    names = []
    for content in islice(pictures(seed), number):
        names.append(f"{len(names):05d}")
        (folder / names[-1]).write_bytes(content)
        if len(names) % 500 == 0:
            print(f"  {len(names)} made", flush=True)
    return names


def by_stages(folder: Path, names: list[str], processes: int, minutes: float) -> dict:
    done: list[Outcome] = []

    def part(number: int) -> None:
        in_time = takewhile(lambda _: time.monotonic() < started + 60 * minutes, names[number::processes])
        for outcome in prepared(folder, in_time):
            done.append(outcome)
            if len(done) % 200 == 0:
                print(f"  {len(done)} of {len(names)}, {time.monotonic() - started:.0f} s", flush=True)

    started = time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(part, range(processes)))
    wall_s = time.monotonic() - started
    slow = sorted(done, key=lambda o: -o.cpu_s)[:5]
    return {
        "pictures": len(done),
        "rows": len({o.name for o in done}),
        "outcomes": dict(Counter(o.word or "usable" for o in done).most_common()),
        "mask_how": dict(Counter(o.mask_how for o in done if o.mask_how)),
        "raised": {o.name: o.error for o in done if o.error},
        "ended": sum(o.word in ENDED for o in done),
        "wall_s": round(wall_s, 1),
        "pictures_per_s": round(len(done) / wall_s, 2),
        "longest_cpu_s": {o.name: o.cpu_s for o in slow},
        "largest_above_base_mib": max(o.peak_mib for o in done),
        "largest_resident_mib": max(o.resident_mib for o in done),
    }


def by_job(folder: Path, names: list[str], processes: int, minutes: float) -> dict:
    """jobs.prepare as an operator starts it; memory is that of the workers below it."""
    feed, root_uri = folder / "feed.tsv", f"{folder}/root"
    rows = "".join(f"P{name}\tProduct {name}\t{name}\n" for name in names)
    feed.write_text(f"id\ttitle\timage_link\n{rows}")
    settings = {
        "root_uri": root_uri,
        "run_id": "survey",
        "feed_uri": str(feed),
        "mask_model": str(MODELS / "mask" / "u2netp.onnx"),
        "caption_model": str(MODELS / "caption"),
        "device": "cpu",
        "refine": {"actors": processes, "batch": 8},
        "rules": {"min_side_px": 16, "max_mb": 64},
        "max_reject_share": 1,
    }
    (folder / "survey.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "jobs.prepare", "--config", str(folder / "survey.yaml"), "--json"]
    started = time.monotonic()
    largest: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        watch = threading.Thread(target=_watch, args=(job, largest), daemon=True)
        watch.start()
        out = job.communicate()[0]
    wall_s = time.monotonic() - started
    if job.returncode:
        return {
            "pictures": len(names),
            "rows": 0,
            "raised": {"job": f"exit code {job.returncode}"},
            "ended": 1,
            "wall_s": round(wall_s, 1),
        }
    found = tables.read(Root(root_uri), "samples").to_pylist()
    return {
        "pictures": len(names),
        "rows": len({row["product_id"] for row in found}),
        "outcomes": dict(Counter(row["reject"] or "usable" for row in found).most_common()),
        "mask_how": dict(Counter(row["mask_how"] for row in found if row["mask_how"])),
        "raised": {},
        "ended": 0,
        "wall_s": round(wall_s, 1),
        "pictures_per_s": round(len(found) / wall_s, 2),
        "largest_resident_mib": max(largest.values(), default=0),
        "largest_of_workers_mib": largest,
        "report": json.loads(out.strip().splitlines()[-1]),
    }


def _watch(job: subprocess.Popen, largest: dict[str, int]) -> None:
    while job.poll() is None:
        try:
            below = psutil.Process(job.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for process in below:
            try:
                name, resident = process.cmdline()[:1], process.memory_info().rss // 2**20
            except psutil.Error:
                continue
            if name and name[0].startswith("ray::"):
                largest[name[0]] = max(largest.get(name[0], 0), resident)
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="through the stages: as many as fit")
    parser.add_argument("--job", action="store_true", help="through jobs.prepare on Ray")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = write(Path(folder), given.pictures, given.seed)
        found = (by_job if given.job else by_stages)(Path(folder), names, given.processes, given.minutes)
    for group in ("outcomes", "mask_how"):
        print("".join(f"\n  {word:24} {number:6}" for word, number in found.get(group, {}).items()))
    found = {"machine": platform.machine(), "cores": os.cpu_count()} | found
    print(json.dumps(found))
    return int(found["rows"] != found["pictures"] or bool(found["raised"]) or found["ended"] > 0)


if __name__ == "__main__":
    sys.exit(main())
