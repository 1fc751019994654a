import pickle

import pytest

from adbooster.contracts.errors import ConfigError
from adbooster.storage.model_store import content_hash, local_copy, refuse_pickles
from adbooster.storage.objects import Root, each
from adbooster.storage.s3 import PatientS3
from tests.faults import Faults, FaultyS3


def test_objects_are_named_by_content_and_stored_once(root):
    first = root.put(b"pixels", "webp")
    assert root.put(b"pixels", "webp") == first
    assert root.read(first) == b"pixels"
    assert root.names("objects") == [first.split("/")[1]]
    assert root.put(b"other", "webp") != first


def test_a_root_travels(root):
    root.write("a/b.json", b"{}")
    assert pickle.loads(pickle.dumps(root)).read("a/b.json") == b"{}"


def test_a_root_on_s3(s3_root, tmp_path):
    root = Root(s3_root)
    root.check_writable()
    name = root.put(b"\x00pixels\x00", "webp")
    assert root.read(name) == b"\x00pixels\x00"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w.safetensors").write_bytes(b"w")
    (tmp_path / "m" / "card.json").write_bytes(b"{}")
    root.put_folder(tmp_path / "m", "weights/1")
    copy = local_copy(f"{s3_root}/weights/1")
    assert (copy / "w.safetensors").read_bytes() == b"w"
    assert content_hash(copy) == content_hash(tmp_path / "m")
    root.write("weights/1/w.safetensors", b"x")
    assert (local_copy(f"{s3_root}/weights/1") / "w.safetensors").read_bytes() == b"x", (
        "replaced in place, fetched anew"
    )


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Root(str(tmp_path / "file" / "root")).check_writable()


def test_content_hash_sees_names_and_bytes_but_not_the_card(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    before = content_hash(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    assert content_hash(tmp_path) == before
    (tmp_path / "a.safetensors").write_bytes(b"2")
    assert content_hash(tmp_path) != before
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert content_hash(tmp_path) != before


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no weights"):
        refuse_pickles(tmp_path)
    (tmp_path / "ok.safetensors").write_bytes(b"")
    refuse_pickles(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin"):
        refuse_pickles(tmp_path)


def test_a_missing_model_is_named():
    with pytest.raises(ConfigError, match="/no/such/model"):
        local_copy("/no/such/model")


def test_a_storage_that_fails_for_a_while(s3_root, s3_endpoint, monkeypatch):
    """One request in eight fails: everything is read and written all the same."""
    with FaultyS3(s3_endpoint, Faults(refused=0.05, lost=0.05, reset=0.03)) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        PatientS3.clear_instance_cache()  # one knows its endpoint from when it was made
        root = Root(f"{s3_root}/through-faults")
        names = each(lambda i: root.put(bytes([i]) * 1000, "webp"), range(24))
        assert [root.read(name)[0] for name in names] == list(range(24))
        assert root.missing([*names, "objects/aa/none.webp"]) == ["objects/aa/none.webp"]
        root.remove(names[:12])
        assert root.missing(names) == sorted(names[:12])
        assert sum(s3.faults.counts.values()) > 3, s3.faults.counts
    PatientS3.clear_instance_cache()
