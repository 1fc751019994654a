"""Renditions a second: jobs.deliver against the plain Pillow loop that a user would write instead.

    python -m tests.benchmarks.deliver --quick     200 creatives instead of 10,000, which take some 10 GB of disk

Creatives of 1080 px, stored as AdBooster stores them, for five slots of one channel. They are a dozen scenes, but each is a
file of its own (a serial number in its metadata), so that each is read, hashed and decoded by itself. The loop, a process
a core, reads each creative once, crops, resizes, encodes with the same quality and writes files; without --quick it takes
every fifth creative. The job also checks the creative's hash, places the product's mask, measures the product's PSNR and
CIEDE2000 in the decoded file, writes its marks, reads it back from the storage, stages a row and publishes table and feed.
Beside the rates: processor time a rendition without Ray, planning, the run after it that changes nothing, and the memory of
the driver and of the actors while files are made. Exit code 1 beyond the bars.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in Ray's actors

import numpy as np
import PIL
import psutil
import pyarrow as pa
import ray
from PIL import Image

from adbooster.channels.frames import frame
from adbooster.channels.presets import Channel, load_channels
from adbooster.contracts import schema
from adbooster.contracts.settings import Pool
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.job import deliver
from adbooster.deliver.plan import plan
from adbooster.deliver.stages import Renderer
from adbooster.engine import cluster, stage_times
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world

SIDE_PX, COHORTS, SCENES = 1080, 10, 12
RATIO_BAR, FLAT_BAR_MIB = 0.4, 256
SERIAL = b"serial 00000000"
SIZES = {
    "square": ([1, 1], [1080, 1080]),
    "landscape": ([1.91, 1], [1200, 628]),
    "portrait": ([4, 5], [1080, 1350]),
    "tall": ([9, 16], [1080, 1920]),
    "card": ([1, 1], [600, 600]),
}


def channel(folder: Path) -> str:
    """The file of a channel with five slots, all of which crops fill."""
    common = {"min_px": [300, 300], "formats": ["jpeg"], "max_bytes": 5_000_000}
    slots = {
        name: common | {"ratio": ratio, "wanted_px": wanted, "min_px": [round(n / 3) for n in wanted]}
        for name, (ratio, wanted) in SIZES.items()
    }
    content = {"name": "bench", "feed": "manifest", "limits": {"id": 100, "url": 2000, "images": 1000}, "slots": slots}
    (folder / "bench.yaml").write_text(json.dumps(content))
    return str(folder / "bench.yaml")


def scenes(where: Channel) -> Iterator[tuple[np.ndarray, np.ndarray, Box]]:
    """(creative, the product's mask cut to it, its box) of scenes in which every slot is filled."""
    for i in range(SCENES):
        for seed in range(i, 10_000, SCENES):
            small = world.compose(list(world.SCENES)[i], list(world.PRODUCTS)[i], SIDE_PX // 2, seed)
            picture, mask = (images.resize(a, SIDE_PX, SIDE_PX, bicubic=True) for a in small)
            ys, xs = (np.flatnonzero((mask > 127).any(axis=axis)) for axis in (1, 0))
            box = Box(int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
            if all(frame((SIDE_PX, SIDE_PX), box, slot).reason is None for slot in where.slots.values()):
                yield picture, np.ascontiguousarray(mask[box.slices]), box
                break


def stock(root: Root, n: int, where: Channel) -> None:
    """So many live creatives, each a file of its own, and their products' masks."""
    stored = []
    for picture, mask, box in scenes(where):
        out = io.BytesIO()
        how = {"lossless": True, "quality": 50, "method": 2, "exact": True}  # as images.encode_lossless
        Image.fromarray(picture).save(out, "WEBP", xmp=SERIAL, **how)
        assert out.getvalue().count(SERIAL) == 1
        stored.append((out.getvalue(), root.put(images.encode_mask(mask), "png"), vars(box)))
    samples, creatives = [], []
    for i in range(n):
        encoded, mask_uri, layout = stored[i // COHORTS % SCENES]
        content = encoded.replace(SERIAL, b"serial %08d" % i)
        product, photo = f"P{i // COHORTS:06d}", f"photo {i // COHORTS}"
        made = {
            "creative_id": f"{i:016x}",
            "request_id": f"{i:064x}",
            "product_id": product,
            "cohort_id": f"c{i % COHORTS}",
        }
        made |= {"placement": "square", "rank": 0, "prompt": "a scene", "photo_sha256": photo, "layout": layout}
        made |= {"uri": root.put(content, "webp"), "sha256": hashlib.sha256(content).hexdigest()}
        made |= {"width": SIDE_PX, "height": SIDE_PX, "size_bytes": len(content), "fallback": False}
        creatives.append(dict.fromkeys(schema.CREATIVES.names) | made | {"weights_revision": "w", "clip_score": 0.5})
        if i % COHORTS == 0:
            named = {"sample_id": product, "product_id": product, "role": "main", "title": product}
            samples.append(dict.fromkeys(schema.SAMPLES.names) | named | {"photo_sha256": photo, "mask_uri": mask_uri})
    for name, rows, key in (("samples", samples, "sample_id"), ("creatives", creatives, "creative_id")):
        tables.merge(root, name, pa.Table.from_pylist(rows, tables.TABLES[name]), key, None, {})


def plain(work: tuple[str, str, list[dict]]) -> tuple[int, float]:
    """What a user would write, of one creative: (files, seconds of a processor)."""
    base, folder, asked = work
    began = time.process_time()
    picture = Image.open(f"{base}/{asked[0]['master_uri']}").convert("RGB")
    for i, row in enumerate(asked):
        x, y, width, height = (row["frame"][name] for name in ("x_px", "y_px", "width_px", "height_px"))
        part = picture.crop((x, y, x + width, y + height))
        if part.size != (size := (row["width_px"], row["height_px"])):
            part = part.resize(size, Image.Resampling.LANCZOS)
        name = f"{folder}/{row['master_sha256']}-{i}.jpg"
        part.save(name, "JPEG", quality=92, subsampling=0, optimize=True)
    return len(asked), time.process_time() - began


def loop(root: Root, requests: pa.Table, every: int, cores: int) -> tuple[float, float]:
    """(renditions a second, seconds of a processor a rendition) of the plain loop over every so manyth creative."""
    spawned = multiprocessing.get_context("spawn")
    ready = spawned.Barrier(cores + 1)
    with tempfile.TemporaryDirectory() as folder, spawned.Pool(cores, ready.wait) as pool:
        rows = groupby(requests.to_pylist(), key=lambda row: row["master_uri"])
        work = [(root.uri, folder, list(asked)) for i, (_, asked) in enumerate(rows) if i % every == 0]
        ready.wait()
        began = time.perf_counter()
        done = pool.map(plain, work, chunksize=4)
        seconds, files = time.perf_counter() - began, sum(n for n, _ in done)
    return files / seconds, sum(spent for _, spent in done) / files


def renderer_s(root: Root, config: DeliverConfig, requests: pa.Table) -> float:
    """Seconds of a processor a rendition of the stage in this process, its files put into another root."""
    stage = Renderer(root, config.encoding, config.fidelity)
    stage(requests.slice(0, 5))
    began, some = time.process_time(), requests.slice(5, 50)
    rows = stage(some)
    assert rows["reject"].null_count == some.num_rows, rows["reject"]
    return (time.process_time() - began) / some.num_rows


class Memory:
    """MiB of this process, and of the largest renderer (its actor and the stage's process beside it), every two seconds."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        yield
        self.over.set()
        thread.join()

    def _watch(self) -> None:
        driver = psutil.Process()
        while not self.over.wait(2):
            largest = 0.0
            for process in driver.children(recursive=True):
                with suppress(psutil.Error):
                    if "Renderer" in " ".join(process.cmdline())[:80]:
                        both = [process, *process.children(recursive=True)]
                        largest = max(largest, sum(p.memory_info().rss for p in both) / 2**20)
            if largest:
                self.seen.append((driver.memory_info().rss / 2**20, largest))

    def figures(self) -> dict[str, tuple[float, float]]:
        """At the start (a tenth of the way, when everything is loaded), in the middle and at the end."""
        at = {"start": len(self.seen) // 10, "middle": len(self.seen) // 2, "end": len(self.seen) - 1}
        return {name: self.seen[i] for name, i in at.items()} if self.seen else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 creatives instead of 10,000")
    parser.add_argument("--creatives", type=int, default=10_000, help="how many without --quick (default 10,000)")
    given = parser.parse_args()
    quick = given.quick
    n, every, cores = (200, 1, os.cpu_count() or 1) if quick else (given.creatives, 5, os.cpu_count() or 1)
    versions = f"Python {platform.python_version()}, Pillow {PIL.__version__}, ray {ray.__version__}"
    print(f"{platform.machine()}, {cores} cores, {versions}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Root(f"{folder}/root")
        values = {"root_uri": root.uri, "run_id": "bench", "channels": (channel(Path(folder)),)}
        values |= {"public_base_url": "https://cdn.shop.example/ads", "render": Pool(actors=cores, batch=20)}
        config = DeliverConfig(**values)
        (where,) = load_channels(config.channels)
        began = time.perf_counter()
        stock(root, n, where)
        stored = sum(s.size_bytes for s in root.stats("objects").values())
        print(f"{n:,} creatives of {SIDE_PX} px, {stored / 1e9:.2f} GB, made in {time.perf_counter() - began:.0f} s;")
        began = time.perf_counter()
        requests = plan(config, root, (where,)).requests
        planned_s = time.perf_counter() - began
        assert requests.num_rows == n * len(SIZES), requests.num_rows
        print(f"slots {', '.join(SIZES)}: JPEG of quality 92, 4:4:4, optimised; {requests.num_rows:,} renditions")
        with tempfile.TemporaryDirectory() as other:
            apart = Root(other)
            for name in {row[key] for row in requests.slice(0, 55).to_pylist() for key in ("master_uri", "mask_uri")}:
                apart.write(name, root.read(name))
            stage_s = renderer_s(apart, config, requests)
        theirs, plain_s = loop(root, requests, every, cores)
        print(f"loop      {theirs:7.2f} renditions/s, {1000 * plain_s:5.1f} ms of a processor each", flush=True)
        cluster.start()
        memory = Memory()
        with memory.watching():
            began = time.perf_counter()
            report = deliver(config)
            seconds = time.perf_counter() - began
        assert report.rendered == report.channels["bench"].filled == requests.num_rows, report
        times = stage_times.read(root, "bench")["deliver"]["Renderer"]
        began = time.perf_counter()
        again = deliver(config.model_copy(update={"run_id": "again"}))
        again_s = time.perf_counter() - began
        assert (again.to_render, again.changed) == (0, 0), again
        cluster.stop()
    ours = report.rendered / seconds
    rendering = times["rows"] / (times["ended_s"] - times["began_s"])
    print(f"job       {ours:7.2f} renditions/s, {seconds:.1f} s in all, {report.size_bytes / 1e9:.2f} GB of files")
    print(f"          {rendering:7.2f} renditions/s once {times['actors']} actors are up")
    print(f"Renderer  {1000 * stage_s:7.1f} ms of a processor each, without Ray")
    print(
        "the job does more: hash of the creative, mask, PSNR and CIEDE2000 of the product in the file, marks, read-back"
    )
    print(f"planning  {planned_s:7.2f} s; the run after it {again_s:.2f} s, nothing made")
    figures = memory.figures()
    for name, (driver, actor) in figures.items():
        print(f"memory    {name:6} driver {driver:6.0f} MiB, largest actor with its process {actor:6.0f} MiB")
    grown = max(e - s for s, e in zip(figures["start"], figures["end"], strict=True))
    print(f"bars: ratio {RATIO_BAR} and {FLAT_BAR_MIB} MiB of growth, both without --quick")
    print(f"ratio {ours / theirs:.2f}")
    sys.exit(not quick and (ours / theirs < RATIO_BAR or grown > FLAT_BAR_MIB))


if __name__ == "__main__":
    main()
