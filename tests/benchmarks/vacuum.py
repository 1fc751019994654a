"""The memory that a vacuum takes, by the number of objects: names spilled to the disk, against one set of all names.

    python -m tests.benchmarks.vacuum --objects 10000000

Writes a table that names nine of ten objects; the objects themselves are made up as their folders are listed, so only
listings and names are real. Each side is a process of its own. Prints both peaks and their ratio; the last line is one JSON
object.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pap
from deltalake import write_deltalake

from adbooster.storage.objects import Root, Stat
from adbooster.storage.vacuum import named, places, vacuum

SIDES = ("vacuum", "one set")


def names(folder: int, count: int) -> list[str]:
    """Made-up names of objects in one folder, the same ones each time."""
    digits = np.random.default_rng(folder).bytes(31 * count).hex()
    prefix = f"objects/{folder:02x}/{folder:02x}"
    return [f"{prefix}{digits[i : i + 62]}.webp" for i in range(0, 62 * count, 62)]


class Listed(Root):
    """A root whose objects are only listed, each a month old; none is removed."""

    def __init__(self, uri: str, objects: int):
        super().__init__(uri)
        self.of_each, self.at = objects // 256, time.time() - 30 * 86400

    def folders(self, folder: str) -> list[str]:
        return [f"{n:02x}" for n in range(256)] if folder == "objects" else super().folders(folder)

    def stats(self, folder: str) -> dict[str, Stat]:
        if not folder.startswith("objects/"):
            return super().stats(folder)
        return {name: Stat(100_000, self.at) for name in names(int(folder[-2:], 16), self.of_each)}

    def remove(self, files: Iterable[str]) -> list[str]:
        list(files)
        return []


def stock(root: Root, objects: int) -> None:
    """tables/creatives with the names of nine of ten objects."""
    columns = pa.schema([("creative_id", pa.string()), ("uri", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        for folder in range(256):
            uris = [name for i, name in enumerate(names(folder, objects // 256)) if i % 10]
            yield pa.RecordBatch.from_arrays([pa.array([uri[-20:] for uri in uris]), pa.array(uris)], schema=columns)

    write_deltalake(f"{root.uri}/tables/creatives", pa.RecordBatchReader.from_batches(columns, batches()))


def measure(side: str, uri: str, objects: int) -> dict:
    root, started = Listed(uri, objects), time.monotonic()
    if side == "vacuum":
        done = vacuum(root, timedelta(days=7), progress=lambda line: print(line, file=sys.stderr))
        assert done.objects == sum(1 for i in range(objects // 256) if not i % 10) * 256, done
    else:
        held: set[str] = set()
        for file in places(root, timedelta(days=7)).naming:
            held |= named(pap.read_table(root.path(file), columns=["uri"]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_mib": round(peak / 2**20), "seconds": round(time.monotonic() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser("tests.benchmarks.vacuum", description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.side:
        print(json.dumps(measure(told.side, told.root, told.objects)))
        return
    found = {}
    with tempfile.TemporaryDirectory(prefix="adb") as folder:
        stock(Root(folder), told.objects)
        for side in SIDES:
            command = [sys.executable, "-m", "tests.benchmarks.vacuum", "--objects", str(told.objects)]
            done = subprocess.run(
                [*command, "--side", side, "--root", folder], stdout=subprocess.PIPE, text=True, check=True
            )
            found[side] = json.loads(done.stdout.splitlines()[-1])
    versions = {"python": platform.python_version(), "deltalake": deltalake.__version__, "pyarrow": pa.__version__}
    print(f"{told.objects:,} objects, nine of ten named by tables/creatives; {versions}")
    for side, figures in found.items():
        print(f"{side:>8}: peak {figures['peak_mib']:,} MiB in {figures['seconds']} s")
    ratio = round(found["one set"]["peak_mib"] / found["vacuum"]["peak_mib"], 2)
    print(f"the set alone takes {ratio} times the memory of the whole vacuum")
    print(json.dumps({"objects": told.objects, **found, "ratio": ratio, "versions": versions}))


if __name__ == "__main__":
    main()
