"""One Ray and one S3 server for the whole session; small pictures and models that tests share."""

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_worker_niceness"] = "0"  # tests share two cores with their own workers
os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # so that `warm_ray` finds its processes again
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_REGION="us-east-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import ray

from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.storage.objects import Root
from adbooster.tiny import world

MODELS = Path(world.__file__).parent / "models"


@pytest.fixture(scope="session")
def local_ray(s3_endpoint):  # workers inherit the environment that stands when Ray starts
    with tempfile.TemporaryDirectory(prefix="adb", dir="/tmp") as scratch:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            _temp_dir=scratch,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


@pytest.fixture
def warm_ray(local_ray, monkeypatch):
    """`local_ray` for tests of what jobs plan, keep and publish: their stages run as tasks, in processes that stay.

    An actor is a new process, and importing torch, diffusers and open_clip takes it longer than the tiny models work. That
    stages run in actors is tested in tests/engine, tests/night/test_nightly.py and tests/generate/test_kills.py.
    """
    monkeypatch.setattr("adbooster.engine.pools._in_actors", in_tasks)


def in_tasks(ds, actor, pool):
    """In place of engine.pools._in_actors. A process keeps the stage that it built last, as an actor does, and the
    stage's process keeps what it imported."""
    from ray.data import TaskPoolStrategy

    from adbooster.engine.isolation import StageProcess

    pool_id = os.urandom(8)

    def stage(rows):
        import sys

        kept = vars(sys).setdefault("_kept_stage", {})
        if pool_id not in kept:
            process = kept.setdefault("process", StageProcess())
            kept.clear()
            kept.update({"process": process, pool_id: actor(process)})
        return kept[pool_id](rows)

    stage.__name__ = actor.__name__
    how = {"batch_size": pool.batch, "batch_format": "pyarrow", "num_cpus": pool.cpus}
    return ds.map_batches(stage, compute=TaskPoolStrategy(size=pool.actors), **how)


@pytest.fixture(scope="session")
def s3_endpoint():
    """A moto server as a subprocess, over real HTTP; the environment points at it for the session."""
    port = 5000 + os.getpid() % 5000
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    endpoint = f"http://127.0.0.1:{port}"
    for _ in range(150):
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            break
        except OSError:
            time.sleep(0.2)
    else:
        raise RuntimeError("moto did not start")
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    yield endpoint
    del os.environ["AWS_ENDPOINT_URL"]
    server.terminate()
    server.wait()


@pytest.fixture
def s3_root(s3_endpoint, request):
    import s3fs

    bucket = f"shop-{abs(hash(request.node.nodeid)) % 10**8}"  # files have tests of the same name
    s3fs.S3FileSystem(endpoint_url=s3_endpoint).mkdir(bucket)
    return f"s3://{bucket}/adbooster"


@pytest.fixture
def root(tmp_path):
    return Root(str(tmp_path / "root"))


@pytest.fixture(scope="session")
def packshot():
    """(photo uint8 [256,256,3], true mask uint8 [256,256]) of a held-out product on white."""
    return world.packshot("teapot", 256)


@pytest.fixture
def tiny_feed(tmp_path):
    """A feed of two products with a packshot and a scene each, beside its pictures; returns its path."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["id\ttitle\timage_link\tlifestyle_image_link\tgoogle_product_category"]
    for i, key in enumerate(("teapot", "running-shoe")):
        write_png(folder / f"{key}.png", world.packshot(key, 256)[0])
        scene, _ = world.compose("halloween", key, 256, 10**7 + i)
        write_png(folder / f"{key}-scene.png", scene)
        lines.append(f"P{i}\tA {key}\t{key}.png\t{key}-scene.png\tHome")
    path = folder / "feed.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_png(path: Path, image_u8: np.ndarray) -> None:
    path.write_bytes(images.encode_mask(image_u8))


def scan(rows):
    """Rows of a table as storage.buckets gives those of a stored one, in two pieces."""
    half = rows.num_rows // 2
    return lambda columns: [part.select(list(columns)) for part in (rows.slice(0, half), rows.slice(half))]


def row(wanted, **values) -> dict:
    """A row of a schema with nulls for all that is not given."""
    assert set(values) <= set(wanted.names)
    return dict.fromkeys(wanted.names) | values


@pytest.fixture
def stocked(root, packshot):
    """A root whose tables hold one product with a true mask, and two cohorts."""
    import pyarrow as pa

    from adbooster.storage import tables

    photo, mask = packshot
    photo_uri = root.put(images.encode_lossless(photo), "photo")
    mask_uri = root.put(images.encode_mask(mask), "png")
    sample = row(
        schema.SAMPLES,
        sample_id="s1",
        product_id="P1",
        role="main",
        title="Teapot",
        category="Home",
        image_uri="teapot.png",
        photo_uri=photo_uri,
        photo_sha256=photo_uri.rsplit("/", 1)[-1].split(".")[0],
        width=256,
        height=256,
        mask_uri=mask_uri,
        mask_area_share=0.2,
        caption="a teapot on a white background",
        background="plain",
        fingerprint="f1",
    )
    tables.merge(root, "samples", pa.Table.from_pylist([sample], schema.SAMPLES), "sample_id", None, {})
    cohorts = [
        row(
            schema.COHORTS,
            cohort_id=name,
            family=family,
            query="teapot",
            context=context,
            interests=[],
            size=1,
            version=name,
        )
        for name, family, context in (("c1", "events", "a halloween night"), ("c2", "seasons", "a snowy winter day"))
    ]
    tables.merge(root, "cohorts", pa.Table.from_pylist(cohorts, schema.COHORTS), "cohort_id", None, {})
    return root


@pytest.fixture
def scenic(stocked):
    """As `stocked`, and the product has two pictures in a scene of its own: halloween and winter."""
    import pyarrow as pa

    from adbooster.storage import tables

    main = tables.read(stocked, "samples").to_pylist()[0]
    more = []
    for scene in ("halloween", "winter"):
        photo, mask = world.compose(scene, "teapot", 256, 11)
        photo_uri = stocked.put(images.encode_lossless(photo), "photo")
        found = {
            "photo_uri": photo_uri,
            "mask_uri": stocked.put(images.encode_mask(mask), "png"),
            "background": "scene",
        }
        more.append(main | found | {"sample_id": scene, "role": "lifestyle", "fingerprint": scene})
    version = tables.version(stocked, "samples")
    tables.merge(stocked, "samples", pa.Table.from_pylist(more, schema.SAMPLES), "sample_id", version, {})
    return stocked


@pytest.fixture
def scenes(root):
    """A root with six products in scenes, true masks and captions."""
    import pyarrow as pa

    from adbooster.storage import tables

    rows = []
    for i, (product, scene) in enumerate(zip(world.HELD_OUT[:6], ["winter", "summer", "halloween"] * 2, strict=True)):
        photo, mask = world.compose(scene, product, 160, 10**7 + i)
        rows.append(
            row(
                schema.SAMPLES,
                sample_id=f"s{i}",
                product_id=f"P{i}",
                role="lifestyle",
                caption=world.caption(product, scene),
                photo_uri=root.put(images.encode_lossless(photo), "photo"),
                mask_uri=root.put(images.encode_mask(mask), "png"),
                background="scene",
            )
        )
    tables.merge(root, "samples", pa.Table.from_pylist(rows, schema.SAMPLES), "sample_id", None, {})
    return root


def learning(root, **changes):
    """Settings of a fine-tuning run on `scenes` that takes seconds."""
    from adbooster.finetune.config import FinetuneConfig

    settings = {
        **{"root_uri": root.uri, "run_id": "r1", "base": str(MODELS / "outpaint"), "device": "cpu"},
        **{"workers": 0, "threads": 2, "size_px": 64, "aspects": (1.0, 0.8, 1.25), "steps": 4, "batch": 3},
        **{"learning_rate": 3e-4, "warmup_steps": 0, "held_out_share": 0.4, "log_every": 1, "precision": "float32"},
        "panel": {"pictures": 6, "paintings": 2, "num_inference_steps": 2},
    }
    return FinetuneConfig(**settings | changes)


class Misbehaving:
    """An HTTP server in a thread: `/status/<code>,<code>...` answers these one after another, and see `_reply`."""

    def __init__(self):
        self.asked: list[str] = []
        self.headers: list[dict] = []
        self.counts: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0
        self.files: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with outer.lock:
                    outer.asked.append(self.path)
                    outer.headers.append(dict(self.headers))
                    outer.counts[self.path] += 1
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                try:
                    outer._reply(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.under_way -= 1

            def log_message(self, *_):
                pass

        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _reply(self, h: BaseHTTPRequestHandler) -> None:
        kind, _, rest = h.path.strip("/").partition("/")
        if kind == "status":
            codes = rest.split("/")[0].split(",")
            code = int(codes[min(self.counts[h.path], len(codes)) - 1])
            return self._send(h, code, self.files["photo"] if code == 200 else b"", {"Retry-After": "0"})
        if kind == "redirect":
            return self._send(h, 302, b"", {"Location": unquote(rest)})
        if kind == "etag":
            mark = f'"{hashlib.sha256(self.files[rest]).hexdigest()[:12]}"'
            if h.headers.get("If-None-Match") == mark:
                return self._send(h, 304, b"", {"ETag": mark})
            return self._send(h, 200, self.files[rest], {"ETag": mark})
        if kind == "endless":
            h.send_response(200)
            h.send_header("Connection", "close")
            h.end_headers()
            while True:
                h.wfile.write(b"\0" * 65536)
        if kind == "drip":  # always something, never an end
            h.send_response(200)
            h.send_header("Content-Length", "1000")
            h.end_headers()
            for _ in range(100):
                h.wfile.write(b"x")
                time.sleep(0.1)
            return None
        if kind == "cut":
            h.send_response(200)
            h.send_header("Content-Length", "100000")
            h.end_headers()
            h.wfile.write(self.files["photo"][:50])
            h.close_connection = True
            return None
        if kind == "slow":
            time.sleep(float(rest.split("/")[0]))
        body = b"<html>sorry</html>" if kind == "page" else self.files["photo"]
        return self._send(h, 200, body, {"Content-Type": "text/html"})

    @staticmethod
    def _send(h: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict) -> None:
        h.send_response(code)
        for name, value in headers.items():
            h.send_header(name, value)
        if code != 304:
            h.send_header("Content-Length", str(len(body)))
        h.end_headers()
        h.wfile.write(body)


@pytest.fixture
def misbehaving(packshot):
    server = Misbehaving()
    server.files["photo"] = images.encode_mask(packshot[0])
    yield server
    server.server.shutdown()
    server.server.server_close()
