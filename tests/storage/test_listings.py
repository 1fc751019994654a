"""Every listing of a root meets a file where it expects a folder, and the other way round."""

from datetime import timedelta

import pytest

from adbooster.cli import console
from adbooster.contracts import schema
from adbooster.measure import measurements
from adbooster.night import state
from adbooster.painting.staged_rows import staged_creatives
from adbooster.prepare import changes
from adbooster.storage import lock, model_store, tables, vacuum
from adbooster.storage.objects import Root


@pytest.fixture(params=["disk", "s3"])
def strewn(request, tmp_path, s3_root):
    """A root with a file, and a folder, at every place where the other is expected."""
    root = Root(str(tmp_path / "root") if request.param == "disk" else s3_root)
    tables.merge(root, "samples", schema.SAMPLES.empty_table(), "sample_id", None, {})
    for folder in ("runs", "models", "models/clip", "objects", "weights", "locks"):
        root.write(f"{folder}/notes.json", b"{}")
    root.write("runs/empty/night.json/file", b"")
    root.write("runs/other/staged/samples-new/part.parquet/file", b"")
    root.write("models/clip/16", b"a file where a revision should be")
    root.write("objects/ab/cd/deeper", b"")
    return root


def test_jobs_and_commands_pass_over_them(strewn, capsys):
    assert state.every(strewn) == []
    console.main(["status", "--root-uri", strewn.uri])
    assert "no night was run here" in capsys.readouterr().out
    assert model_store.kept(strewn) == []
    assert staged_creatives(strewn, "r", "recipe").num_rows == 0
    live = changes.live_samples(strewn, 0)
    assert changes.known_samples(strewn, "r", live, 0).num_rows == 0
    assert measurements.known_or_measured(strewn, "r", schema.LOOKS.empty_table(), lambda rows: None).num_rows == 0
    assert lock.newest(strewn) is None
    assert vacuum.vacuum(strewn, timedelta(days=7), dry_run=True).objects == []


def test_folders_are_folders(strewn):
    assert strewn.folders("runs") == ["empty", "other"]
    assert strewn.folders("models/clip") == []
    assert strewn.folders("nowhere") == []
