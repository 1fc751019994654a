"""Models below the root, and their copies on a node."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adbooster.cli.console import main
from adbooster.contracts.errors import ConfigError
from adbooster.storage import node_cache
from adbooster.storage.model_store import content_hash, kept, local_copy, pull
from adbooster.storage.objects import Root
from adbooster.storage.s3 import PatientS3
from tests.conftest import MODELS
from tests.faults import Faults, FaultyS3


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "clip"
    (folder / "text").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "text" / "model.safetensors").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def node(tmp_path, monkeypatch):
    """The cache of a fresh node."""
    monkeypatch.setenv("ADBOOSTER_CACHE", str(tmp_path / "node"))
    node_cache._sha256.cache_clear()
    return tmp_path / "node"


def copies(node: Path) -> list[Path]:
    return [p for p in node.iterdir() if p.suffix != ".lock"]


def test_a_pulled_model_is_the_model_and_its_hashes(root, model):
    done = pull(root, str(model))
    assert done.uri == f"{root.uri}/models/clip/{content_hash(model)}"
    copy = local_copy(done.uri)
    assert (copy / "text" / "model.safetensors").read_bytes() == b"weights" * 1000
    assert content_hash(copy) == content_hash(model), "nothing is painted again because a model moved"
    said = json.loads((copy / "manifest.json").read_text())
    assert set(said["files"]) == {"config.json", "text/model.safetensors"}
    assert said["files"]["config.json"] == {
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size_bytes": 2,
    }


def test_pulled_once(root, model):
    assert pull(root, str(model)).copied
    written = root.stats("models")
    assert not pull(root, str(model)).copied
    assert root.stats("models") == written
    (model / "config.json").write_text('{"a": 1}')
    assert pull(root, str(model)).copied, "other bytes are another revision"
    assert len(root.names("models/clip")) == 2


def test_one_file_is_given_as_a_file(root, tmp_path):
    (tmp_path / "u2net.onnx").write_bytes(b"onnx")
    done = pull(root, str(tmp_path / "u2net.onnx"))
    assert done.uri.endswith(f"/models/u2net/{done.revision}/u2net.onnx")
    assert local_copy(done.uri).read_bytes() == b"onnx"


def test_what_was_cut_off_is_no_model_and_is_pulled_again(root, model, monkeypatch):
    def cut(relative, content):
        raise OSError("the line went dead")

    monkeypatch.setattr(root, "write_json", cut)
    with pytest.raises(OSError, match="the line went dead"):
        pull(root, str(model))
    assert not any(name.endswith("manifest.json") for name in root.stats("models")), "the manifest goes last"
    monkeypatch.undo()
    assert pull(root, str(model)).copied
    local_copy(pull(root, str(model)).uri)


@pytest.mark.parametrize("bad", ["pytorch_model.bin", "model.ckpt", "text/weights.pt", "x.pkl"])
def test_pickles_are_refused(root, model, bad):
    (model / bad).write_bytes(b"")
    with pytest.raises(ConfigError, match=Path(bad).name.replace(".", r"\.")):
        pull(root, str(model))
    assert root.stats("models") == {}


@pytest.mark.parametrize("name", ["../weights", "a/b", ".hidden", "a" * 101])
def test_names_stay_below_models(root, model, name):
    with pytest.raises(ConfigError, match="--name"):
        pull(root, str(model), name)
    assert root.stats("") == {}


def test_a_damaged_model_is_refused(root, model):
    done = pull(root, str(model))
    damaged = Path(done.uri) / "text" / "model.safetensors"
    damaged.write_bytes(b"Weights" * 1000)
    with pytest.raises(ConfigError, match=r"text/model\.safetensors holds other bytes; pull it again"):
        local_copy(done.uri)
    damaged.unlink()
    with pytest.raises(ConfigError, match=r"text/model\.safetensors is missing"):
        local_copy(done.uri)


def test_on_s3_from_s3_through_a_node(s3_root, model, node):
    s3 = Root(s3_root)
    s3.put_file(model / "config.json", "bought/clip/config.json")
    s3.put_file(model / "text" / "model.safetensors", "bought/clip/text/model.safetensors")
    done = pull(s3, f"{s3_root}/bought/clip")
    assert done.revision == content_hash(model)
    copy = local_copy(done.uri)
    assert content_hash(copy) == content_hash(model)
    assert local_copy(done.uri) == copy
    assert copies(node) == [copy]

    weights = copy / "text" / "model.safetensors"
    weights.write_bytes(b"Weights" * 1000)
    assert (local_copy(done.uri) / "text" / "model.safetensors").read_bytes() == b"weights" * 1000, "made anew"

    s3.write(f"models/clip/{done.revision}/text/model.safetensors", b"Weights" * 1000)
    with pytest.raises(ConfigError, match="holds other bytes; pull it again"):
        local_copy(done.uri)
    assert len(copies(node)) == 1, "what is wrong does not stay"


def test_many_processes_of_a_node_copy_once(s3_root, s3_endpoint, model, node):
    done = pull(Root(s3_root), str(model))
    asks = "import sys; from adbooster.storage.model_store import local_copy; print(local_copy(sys.argv[1]))"
    with FaultyS3(s3_endpoint, Faults(slow=1.0, slow_s=0.3)) as slow:
        env = os.environ | {"AWS_ENDPOINT_URL": slow.endpoint}
        command = [sys.executable, "-c", asks, done.uri]
        actors = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        found = {actor.communicate(timeout=120)[0].strip() for actor in actors}
        gets = [path for _, method, path, _ in slow.done if method == "GET" and "model.safetensors" in path]
    assert all(actor.returncode == 0 for actor in actors)
    assert found == {str(p) for p in copies(node)}
    assert len(gets) == 1


def test_the_cache_is_bounded_and_what_is_in_use_stays(s3_root, node, tmp_path, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_CACHE_GIB", str(2500 / 2**30))
    root, uris = Root(s3_root), []
    for i in range(4):
        root.write(f"loose/m{i}.onnx", bytes([i]) * 1000)
        uris.append(f"{s3_root}/loose/m{i}.onnx")
    old, used = local_copy(uris[0]), local_copy(uris[1])
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    newer = local_copy(uris[2])
    assert not old.exists()
    assert used.exists()
    assert newer.exists()
    assert local_copy(uris[3]).exists()
    assert used.exists(), "used within a day: it stays, over the bound"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, for one repository `shop/clip`."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    FILES = {  # noqa: RUF012
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "run.py": b"",
        "w.gguf": b"",
    }

    def do_GET(self):
        if self.path.startswith("/api/models/shop/clip"):
            siblings = [{"rfilename": name} for name in self.FILES]
            facts = {"id": "shop/clip", "modelId": "shop/clip", "sha": self.COMMIT, "siblings": siblings, "tags": []}
            if "/tree/" in self.path:
                facts = [{"type": "file", "path": n, "size": len(b), "oid": n} for n, b in self.FILES.items()]
            return self.answer(json.dumps(facts).encode(), {"Content-Type": "application/json"})
        name = self.path.rsplit("/", 1)[-1]
        if f"/shop/clip/resolve/{self.COMMIT}/" not in self.path or name not in self.FILES:
            return self.send_error(404)
        self.server.asked.append(name)
        return self.answer(self.FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": self.COMMIT})

    do_HEAD = do_GET

    def answer(self, body: bytes, headers: dict) -> None:
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_from_a_hub(root):
    """A process of its own: huggingface_hub reads its settings when it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "adbooster.cli.console", "models", "pull", "--root-uri", root.uri, "--json"]
    done = subprocess.run([*command, "hub:shop/clip"], env=env, capture_output=True, text=True, timeout=120)
    lost = subprocess.run([*command, "hub:shop/none"], env=env, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["hub_commit"] == Hub.COMMIT
    assert Path(said["uri"]) == Path(root.uri) / "models" / "clip" / said["revision"]
    assert sorted(root.names(f"models/clip/{said['revision']}")) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    assert set(server.asked) == {"config.json", "model.safetensors"}, "no pickle and no program is even asked for"
    assert lost.returncode == 2
    assert "hub:shop/none" in lost.stderr
    assert "Traceback" not in lost.stderr


def test_the_command_says_where_the_model_is(root, capsys):
    main(["models", "pull", str(MODELS / "rank"), "--root-uri", root.uri, "--name", "clip"])
    first = capsys.readouterr().out
    assert f"{root.uri}/models/clip/{content_hash(MODELS / 'rank')} (" in first
    assert "MB)" in first
    main(["models", "pull", str(MODELS / "rank"), "--root-uri", root.uri, "--name", "clip"])
    assert "was there already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["models", "pull", "/no/such/model", "--root-uri", root.uri])
    assert stopped.value.code == 2


def test_the_list_names_whole_models_by_the_uri_that_jobs_are_given(root, s3_root, model, tmp_path, capsys):
    assert kept(root) == []
    main(["models", "list", "--root-uri", root.uri])
    assert "there is no model below" in capsys.readouterr().out
    (tmp_path / "u2net.onnx").write_bytes(b"onnx")
    for where in (root, Root(s3_root)):
        pulled = [pull(where, str(model)), pull(where, str(tmp_path / "u2net.onnx"))]
        (model / "config.json").write_text(f'{{"where": "{where.uri}"}}')
        newer = pull(where, str(model))
        where.write("models/cut/0123456789abcdef/model.safetensors", b"weights")
        main(["models", "list", "--root-uri", where.uri, "--json"])
        told = json.loads(capsys.readouterr().out)
        assert [k["uri"] for k in told] == [newer.uri, pulled[0].uri, pulled[1].uri], "what was cut off has no name"
        assert [(k["files"], k["size_bytes"]) for k in told[1:]] == [(p.files, p.size_bytes) for p in pulled]
        main(["models", "list", "--root-uri", where.uri])
        assert f"{pulled[1].uri} (1 files, 0.0 MB, " in capsys.readouterr().out


def test_a_models_upload_survives_a_storage_that_fails(s3_root, s3_endpoint, model, node, monkeypatch):
    with FaultyS3(s3_endpoint, Faults(refused=0.1, reset=0.05, seed=3)) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        PatientS3.clear_instance_cache()
        done = pull(Root(s3_root), str(model))
        assert content_hash(local_copy(done.uri)) == content_hash(model)
    PatientS3.clear_instance_cache()
