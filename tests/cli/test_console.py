"""The operator's commands, as they are typed: what is printed, the exit code, what is changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from deltalake import write_deltalake

from adbooster.cli.console import main
from adbooster.storage import tables
from adbooster.storage.lock import HELD, NightLock
from adbooster.storage.objects import Root
from tests.storage.test_rollback import live, publish


def said(capsys, *argv: str) -> str:
    main(list(argv))
    return capsys.readouterr().out


def refused(capsys, *argv: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return stopped.value.code, capsys.readouterr().err


@pytest.fixture
def nights(root):
    publish(root, ["a", "b"])
    publish(root, ["c"], delete=["a"])
    return root


def test_history_says_what_each_night_did(nights, capsys):
    main(["rollback", "--root-uri", nights.uri, "--to", "0"])
    capsys.readouterr()
    rows = json.loads(said(capsys, "history", "--root-uri", nights.uri, "--json"))
    assert [(r["version"], r["operation"], r["rows_added"], r["rows_removed"]) for r in rows] == [
        (2, "RESTORE", 1, 1),
        (1, "MERGE", 1, 1),
        (0, "WRITE", 2, 0),
    ]
    assert [r["run_id"] for r in rows] == [None, "night 0", "night None"]
    assert rows[0]["rollback_to"] == 0
    page = said(capsys, "history", "--root-uri", nights.uri, "--limit", "2")
    assert "RESTORE of 0" in page
    assert "night 0" in page
    assert "WRITE" not in page


def test_what_made_a_night_is_in_its_commit(root, capsys):
    made_by = {"run_id": "n", "recipe_id": "4a1c", "weights_revision": "77e0", "git_commit": "0123456789abcdef"}
    tables.merge(root, "creatives", tables.read(root, "creatives"), "creative_id", None, made_by)
    row = json.loads(said(capsys, "history", "--root-uri", root.uri, "--json"))[0]
    assert {key: row[key] for key in made_by} == made_by
    page = said(capsys, "history", "--root-uri", root.uri)
    assert all(name in page for name in ("4a1c", "77e0", "0123456789"))


def test_a_table_written_anew_does_not_say_how_many_rows_went(nights, capsys):
    write_deltalake(f"{nights.uri}/tables/creatives", tables.read(nights, "creatives"), mode="overwrite")
    newest = json.loads(said(capsys, "history", "--root-uri", nights.uri, "--json"))[0]
    assert (newest["operation"], newest["rows_added"], newest["rows_removed"]) == ("WRITE", 2, None)


def test_rollback_says_first_and_does_then(nights, capsys):
    planned = said(capsys, "rollback", "--root-uri", nights.uri, "--to", "0", "--dry-run")
    assert "would become what is live: 2 rows, 1 added and 1 removed against version 1" in planned
    assert live(nights) == {"b", "c"}
    assert "is now, as version 2, what is live" in said(capsys, "rollback", "--root-uri", nights.uri, "--to", "0")
    assert live(nights) == {"a", "b"}


def test_compact_merges_files_unless_a_night_runs(root, capsys, monkeypatch):
    for i in range(20):
        publish(root, [f"c{i}"])
    with NightLock(root, "tonight"):
        monkeypatch.delenv(HELD)  # as in another process
        code, err = refused(capsys, "compact", "--root-uri", root.uri)
        assert (code, "night tonight has held the lock" in err) == (1, True)
    assert "creatives 20 to 1 files, a checkpoint" in said(capsys, "compact", "--root-uri", root.uri)
    assert "no table has enough" in said(capsys, "compact", "--root-uri", root.uri)
    assert json.loads(said(capsys, "compact", "--root-uri", root.uri, "--json"))["compacted"] == 0
    assert len(live(root)) == 20


def test_vacuum_lists_first_and_removes_then(nights, capsys):
    flags = ("vacuum", "--root-uri", nights.uri, "--older-than", "0", "--force")
    planned = said(capsys, *flags, "--dry-run").splitlines()
    assert len(planned) == 3
    assert planned[-1].startswith("would remove 1 objects (2 stay), 1 table files and 0 staged parts")
    assert all(nights.exists(name) for name in planned[:2])
    done = json.loads(said(capsys, *flags, "--json"))
    assert (done["table_files"], done["objects"], done["first"]) == (1, 1, planned[:2])
    assert not any(nights.exists(name) for name in planned[:2])
    assert live(nights) == {"b", "c"}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["history"], "there is no table"),
        (["rollback", "--to", "0"], "there is no table"),
        (["compact"], "there are no tables below"),
        (["vacuum"], "there are no tables below"),
        (["vacuum", "--older-than", "2h"], "below the minimum of 1 day"),
        (["vacuum", "--older-than", "soon"], "'soon' is not a time; 7 or 7d, 36h, 2w are"),
        (["rollback"], "--to"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(root, capsys, flags, says):
    code, err = refused(capsys, flags[0], "--root-uri", root.uri, *flags[1:])
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not Path(root.uri).exists(), "nothing is made on the way"


def test_the_root_comes_from_the_environment_too(nights):
    env = {k: v for k, v in os.environ.items() if k != "ADBOOSTER_ROOT_URI"}
    command = [sys.executable, "-m", "adbooster.cli.console", "history", "--json"]
    done = subprocess.run(command, env=env | {"ADBOOSTER_ROOT_URI": nights.uri}, capture_output=True, text=True)
    assert [r["version"] for r in json.loads(done.stdout)] == [1, 0]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--root-uri is required" in done.stderr


def test_the_commands_on_s3(s3_root, capsys):
    root = Root(s3_root)
    publish(root, ["a"])
    publish(root, ["b"], delete=["a"])
    said(capsys, "rollback", "--root-uri", s3_root, "--to", "0")
    assert len(json.loads(said(capsys, "history", "--root-uri", s3_root, "--json"))) == 3
    assert "removed 1 objects (1 stay)" in said(capsys, "vacuum", "--root-uri", s3_root, "--older-than", "0", "--force")
    assert live(root) == {"a"}
