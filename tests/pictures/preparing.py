"""Pictures through the stages of prepare in a process of their own, with what each took.

    python -m tests.pictures.preparing FOLDER < names

`prepared` runs that and survives what a picture does to it: a process that dies or hangs is replaced and the rest goes on.
"""

import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ENDED = ("crashed", "timed_out")
TOO_LONG_S = 150  # on a machine that does other things too; what is held to is the processor's time


class Outcome(NamedTuple):
    """What became of one picture.

    word      the reject word; null: usable. "crashed" or "timed_out" if its process ended or had to be ended
    error     what the stages raised: nothing may be
    cpu_s     seconds of a processor, all threads
    peak_mib  memory at its largest above that before the picture; `resident_mib` is with it
    """

    name: str
    word: str | None
    mask_how: str | None
    error: str | None
    cpu_s: float
    peak_mib: int
    resident_mib: int


def prepared(folder: Path, names: Iterable[str], network: bool = True) -> Iterator[Outcome]:
    """Outcomes in the order of `names`, files in `folder`, which may be written as the names are asked for.

    Without the network, grey levels stand for its probabilities: twenty times as many pictures, and more odd masks.
    """
    child = None
    try:
        for name in names:
            child = child or _start(folder, network)
            outcome = _ask(child, name)
            if outcome.word in ENDED:
                child.kill()
                child.wait()
                child = None
            yield outcome
    finally:
        if child:
            child.kill()
            child.wait()


def _start(folder: Path, network: bool) -> subprocess.Popen:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.pictures.preparing",
        str(folder),
        *["--grey"] * (not network),
    ]
    silent, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=silent)


def _ask(child: subprocess.Popen, name: str) -> Outcome:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(f"{name}\n")
        child.stdin.flush()
    except BrokenPipeError:
        return Outcome(name, "crashed", None, None, 0, 0, 0)
    if not select.select([child.stdout], [], [], TOO_LONG_S)[0]:
        return Outcome(name, "timed_out", None, None, TOO_LONG_S, 0, 0)
    line = child.stdout.readline()
    return Outcome(name, **json.loads(line)) if line else Outcome(name, "crashed", None, None, 0, 0, 0)


def _stages(folder: Path, root_uri: str, network: bool):
    from adbooster.models.preprocessing import U2NET
    from adbooster.models.settings import Masking, MaskNetwork
    from adbooster.prepare.changes import MadeBy
    from adbooster.prepare.config import Rules, Source
    from adbooster.prepare.stages import Fetcher, Judge, Refiner, Segmenter, Shrinker
    from adbooster.storage.objects import Root
    from adbooster.tiny import world

    class _Grey:
        size_px = (320, 320)

        def maps(self, x_u8: np.ndarray) -> np.ndarray:
            small = x_u8.mean(1, dtype=np.float32)
            low, high = np.percentile(small, (5, 95), axis=(1, 2), keepdims=True)
            return (1 - (small - low) / np.maximum(high - low, 1.0)).clip(0, 1).astype(np.float32)

    root, made, rules = Root(root_uri), MadeBy("mask", "caption", "rules"), Rules(min_side_px=16, max_mb=64)
    model = str(Path(world.__file__).parent / "models" / "mask" / "u2netp.onnx")
    segmenter = Segmenter(model, MaskNetwork(), ("cpu", 1))
    if not network:
        segmenter.net = _Grey()
    shrinker = Shrinker(root, U2NET.model_copy(update={"size_px": (320, 320)}), (96, 96), made)
    fetcher = Fetcher(root, Source(feed_uri=str(folder / "feed.tsv")), rules, made)
    return fetcher, shrinker, segmenter, Refiner(root, Masking(), made), Judge(rules)


def _prepare(stages, name: str) -> dict:
    import pyarrow as pa

    from adbooster.contracts import schema

    fetcher, shrinker, *mask, judge = stages
    row = dict.fromkeys(schema.PLANNED.names) | {"sample_id": name, "product_id": name, "role": "main"}
    rows = fetcher(pa.Table.from_pylist([row | {"image_uri": name}], schema.PLANNED))
    found = rows.to_pylist()[0]
    if found["reject"] is None:
        rows = shrinker(rows)
        found = rows.to_pylist()[0]
    if found["reject"] is None:
        rows = schema.extend(rows, schema.CAPTIONED, caption=["a thing"], caption_by=["caption"])
        for stage in (*mask, judge):
            rows = stage(rows)
        found = rows.to_pylist()[0]
    return {"word": found["reject"], "mask_how": found.get("mask_how")}


def _memory(what: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) // 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        stages = _stages(Path(sys.argv[1]), root, "--grey" not in sys.argv)
        for name in iter(lambda: sys.stdin.readline().strip(), ""):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
            base, started = _memory("VmRSS"), time.process_time()
            done: dict = {"word": None, "mask_how": None, "error": None}
            try:
                done |= _prepare(stages, name)
            except Exception as e:
                done["error"] = f"{type(e).__name__}: {e}"[:300]
            used = {"cpu_s": round(time.process_time() - started, 3), "peak_mib": _memory("VmHWM") - base}
            print(json.dumps(done | used | {"resident_mib": _memory("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
