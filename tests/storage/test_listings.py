"""Every listing of a root meets a file where it expects a folder, and the other way round."""

from datetime import timedelta

import pytest

from adbooster.cli import console
from adbooster.contracts import schema
from adbooster.finetune.checkpoints import Checkpoints
from adbooster.generate import marks
from adbooster.measure import measurements
from adbooster.night import state
from adbooster.painting import candidates
from adbooster.painting.requests import staged_creatives
from adbooster.prepare import changes
from adbooster.report import gallery, page
from adbooster.storage import lock, model_store, tables, vacuum
from adbooster.storage.objects import Root
from tests.conftest import MODELS, scan
from tests.storage.test_rollback import live, publish
from tests.whole_feed import whole_feed


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
    assert list(changes.staged_samples(strewn, "r", 0)) == []
    assert measurements.known_or_measured(strewn, "r", schema.LOOKS.empty_table(), lambda rows: None).num_rows == 0
    assert lock.newest(strewn) is None
    assert vacuum.vacuum(strewn, timedelta(days=7), dry_run=True).objects == 0


def test_folders_are_folders(strewn):
    assert strewn.folders("runs") == ["empty", "other"]
    assert strewn.folders("models/clip") == []
    assert strewn.folders("nowhere") == []


FOREIGN = (".DS_Store", "_SUCCESS", "notes.json", "desktop.ini")
FOLDERS = (
    "",
    "tables",
    "tables/creatives",
    "tables/creatives/_delta_log",
    "tables/other",
    "runs",
    "runs/n",
    "runs/n/staged",
)
FOLDERS += (
    "runs/n/staged/samples-new",
    "runs/n/candidates",
    "models",
    "models/rank",
    "objects",
    "objects/ab",
    "weights",
)
FOLDERS += ("locks", "latents", "checkpoints", "weights/77e0")
KINDS = ("runs/n/night.json", "runs/n/progress.json", "models/rank/16/manifest.json", "runs/n/report.json/part")


@pytest.fixture(params=["disk", "s3"])
def littered(request, tmp_path, s3_root):
    """A root with two nights and a model, and in each of its folders what desktops, Spark and consoles leave behind."""
    root = Root(str(tmp_path / "root") if request.param == "disk" else s3_root)
    publish(root, ["a", "b"])
    publish(root, ["c"], delete=["a"])
    console.main(["models", "pull", str(MODELS / "rank"), "--root-uri", root.uri])
    for folder in FOLDERS:
        for name in FOREIGN:
            root.write(f"{folder}/{name}".lstrip("/"), b"\0\1foreign")
        if request.param == "s3" and folder:
            root.fs.call_s3("put_object", Bucket=root.base.split("/")[0], Key=f"{root.path(folder).split('/', 1)[1]}/")
    for name in KINDS:
        root.write(name, b"[1, 2]")
    return root


COMMANDS = [
    ["status"],
    ["status", "--limit", "99", "--json"],
    ["history"],
    ["models", "list"],
    ["models", "list", "--json"],
    ["audit", "b"],
    ["audit", "a"],
    ["audit", "c"],
    ["rollback", "--to", "0", "--dry-run"],
    ["vacuum", "--older-than", "0", "--force", "--dry-run"],
    ["rollback", "--to", "0"],
    ["vacuum", "--older-than", "0", "--force"],
]


def test_every_command_works_on_a_littered_root(littered, capsys):
    foreign = {name for name in littered.stats("") if name.rsplit("/", 1)[-1] in FOREIGN}
    assert len(foreign) == len(FOLDERS) * len(FOREIGN)
    for command in COMMANDS:
        assert live(littered) == {"b", "c"} or command == COMMANDS[-1]
        console.main([*command, "--root-uri", littered.uri])
        assert capsys.readouterr().out
    assert live(littered) == {"a", "b"}
    assert foreign <= set(littered.stats("")), "what others left is theirs"
    with pytest.raises(SystemExit, match="2"):
        console.main(["history", "--table", "samples", "--root-uri", littered.uri])
    assert "there is no table" in capsys.readouterr().err


def test_jobs_read_past_a_litter(littered, tmp_path):
    assert state.every(littered) == []
    assert lock.newest(littered) is None
    with lock.NightLock(littered, "n2"):
        assert lock.newest(littered).run_id == "n2"
    assert Checkpoints(littered, "checkpoints").latest() is None
    assert candidates.read(littered, {"r": "n"}) == {}
    assert list(changes.staged_samples(littered, "n", None)) == []
    assert staged_creatives(littered, "n", "recipe").num_rows == 0
    gallery.write(littered, "n", scan(schema.CREATIVES.empty_table()), {}, 10)
    page.write_report(littered, "n")
    littered.write("shop/marks/anna.json", b'{"format": "adbooster-marks-1", "marks": []}')
    littered.write("shop/marks/old.json/file", b"")
    littered.write("shop/feed/part-1.tsv", b"id\ttitle\timage_link\nA\tA\ta.png\n")
    for folder in ("shop/marks", "shop/feed"):
        for name in (".DS_Store", "_SUCCESS", "empty"):
            littered.write(f"{folder}/{name}", b"")
    assert marks.read(f"{littered.uri}/shop/marks") == []
    assert whole_feed(f"{littered.uri}/shop/feed").rows == 1


def test_finished_runs_are_asked_for_once_and_the_others_every_time(root):
    for run in ("done", "stopped"):
        root.write(f"runs/{run}/config.json", b"{}")
    root.write("runs/done/report.json", b"{}")
    assert tables.unfinished_runs(root) == ["stopped"]
    tables.remember_finished(root)
    root.remove(["runs/done/report.json"])
    assert tables.unfinished_runs(root) == ["stopped"]
    root.write("runs/stopped/report.json", b"{}")
    assert tables.unfinished_runs(root) == []
    root.write("runs/finished.json", b"nothing of ours")
    assert tables.unfinished_runs(root) == ["done"]
