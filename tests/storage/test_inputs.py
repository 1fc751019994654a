"""Files from people: of bounded size, and refused without a right signature where one is asked for."""

import json

import pytest

from adbooster.cli import console
from adbooster.cohorts.cohort_file import read_cohorts
from adbooster.contracts.errors import ConfigError
from adbooster.evaluate import outcomes
from adbooster.experiments.outcomes import read as read_outcomes
from adbooster.generate import marks
from adbooster.night.config import NightlyConfig
from adbooster.painting.brand_rules import read_brand_rules
from adbooster.painting.targeting import read_targeting
from adbooster.storage.inputs import read_input, sign

FILES = {
    "marks.json": (marks.read, json.dumps({"format": marks.FORMAT, "marks": []})),
    "targeting.csv": (read_targeting, "product_id,cohort_id\n007,c1\n"),
    "outcomes.csv": (read_outcomes, "creative_id,day,impressions,clicks,conversions\na,2026-11-01,1,0,0\n"),
    "brand_rules.yaml": (read_brand_rules, "never: [{name: guns, words: [gun]}]\n"),
    "cohorts.yaml": (read_cohorts, "- {id: c1, query: boots}\n"),
}


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("SHOP_KEY", "a key of the shop")
    monkeypatch.setenv("OTHER_KEY", "another key")
    return "SHOP_KEY"


@pytest.mark.parametrize("name", FILES)
def test_an_unsigned_or_changed_file_is_refused_and_a_signed_one_is_read(tmp_path, key, capsys, name):
    read, text = FILES[name]
    path = tmp_path / name
    path.write_text(text)
    read(str(path))
    with pytest.raises(ConfigError, match="is not signed, which signing_key_env asks for"):
        read(str(path), key)
    console.main(["sign", str(path), "--key-env", key])
    assert capsys.readouterr().out.strip() == f"{path}.sig"
    read(str(path), key)
    with pytest.raises(ConfigError, match="is not what was signed"):
        read(str(path), "OTHER_KEY")
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match="is not what was signed"):
        read(str(path), key)
    with pytest.raises(ConfigError, match="NO_KEY, which signing_key_env names, is not set"):
        read(str(path), "NO_KEY")


def test_every_file_of_a_folder_is_signed(tmp_path, key):
    for name in ("anna.json", "ben.json"):
        (tmp_path / name).write_text(FILES["marks.json"][1])
    sign(str(tmp_path / "anna.json"), key)
    with pytest.raises(ConfigError, match=r"ben\.json is not signed"):
        marks.read(str(tmp_path), key)
    sign(str(tmp_path / "ben.json"), key)
    assert marks.read(str(tmp_path), key) == []


def test_signatures_on_s3(s3_root, key):
    import fsspec

    uri = f"{s3_root}/marks/anna.json"
    with fsspec.open(uri, "w") as f:
        f.write(FILES["marks.json"][1])
    with pytest.raises(ConfigError, match="is not signed"):
        marks.read(f"{s3_root}/marks", key)
    assert sign(uri, key) == f"{uri}.sig"
    assert marks.read(f"{s3_root}/marks", key) == []


def test_one_setting_holds_for_all_jobs_of_a_night():
    values = NightlyConfig._shared({"signing_key_env": "SHOP_KEY", "prepare": {}, "generate": {}, "evaluate": {}})
    assert {values[s]["signing_key_env"] for s in ("prepare", "generate", "evaluate")} == {"SHOP_KEY"}
    with pytest.raises(ValueError, match="signing_key_env"):
        NightlyConfig(root_uri="r", signing_key_env="the key itself")


def test_folders_and_large_files_are_one_sentence(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 1001)
    with pytest.raises(ConfigError, match="has 1001 bytes, allowed are 1000"):
        read_input(str(tmp_path / "large"), "marks file", 1000)
    with pytest.raises(ConfigError, match="is a folder and should be a file"):
        read_input(str(tmp_path), "outcomes table", 1000)
    with pytest.raises(ConfigError, match="there is no file at"):
        sign(str(tmp_path), "PATH")


def test_targeting_keeps_ids_as_they_are_written(tmp_path):
    (tmp_path / "t.csv").write_text(FILES["targeting.csv"][1])
    assert read_targeting(str(tmp_path / "t.csv")).to_pylist() == [{"product_id": "007", "cohort_id": "c1"}]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "product_id,cohort_id\nP1,c1\n,c1\n", "row 2: product_id None"),
        ("t.csv", "product_id,cohort_id\nP1," + "c" * 301 + "\n", "row 1: cohort_id 'ccc"),
        ("t.csv", "product_id,cohort_id,product_id\nP1,c1,P2\n", "product_id', or has it more than once"),
        ("t.csv", "product_id,cohort_id\nP1\n", "cannot be read"),
        ("t.csv", "", "cannot be read"),
        ("t.parquet", "PAR1", "cannot be read"),
    ],
)
def test_a_bad_row_of_targeting_is_named(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_targeting(str(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,d,1,0,0\na,e,many,0,0\n", r"Row #3.*'many'"),
        ("a,d,1,0\n", "cannot be read"),
        ("a,d,9" + "9" * 30 + ",0,0\n", "cannot be read"),
        ("a,d,1.5,0,0\n", "'1.5'"),
    ],
)
def test_a_bad_row_of_outcomes_is_named(tmp_path, text, says):
    (tmp_path / "o.csv").write_text("creative_id,day,impressions,clicks,conversions\n" + text)
    with pytest.raises(ConfigError, match=says):
        read_outcomes(str(tmp_path / "o.csv"))


def test_counts_that_would_overflow_are_left_out():
    from tests.evaluate.test_outcomes import counts, creatives

    found = outcomes.join(
        counts(("a", "d", 2**62, 1), ("a", "e", 2**62, 1), ("a", "f", 5, 1)),
        creatives(("a", "c", 0.1)),
        outcomes.Outcomes(),
    )
    assert (found.broken, found.creatives[0].impressions) == (2, 5)


@pytest.mark.parametrize(
    "text",
    [
        "- &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"- &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {k: v}\n"
        + "".join(
            f"{c}: &{c} {{<<: [{', '.join(['*' + p] * 9)}]}}\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "&a [*a]",
        "[" * 5000,
        "- id: 2026-99-99\n",
        "? [a]\n: b\n",
        "\x00",
    ],
    ids=["aliases", "merges", "itself", "deep", "date", "key", "nul"],
)
def test_yaml_that_stands_for_more_than_memory_holds(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="c.yaml"):
        read_cohorts(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "text",
    ['{"marks": ' + "[" * 200_000, "[" * 200_000, '{"format": "adbooster-marks-1", "by": "\\ud800", "marks": []}'],
)
def test_json_that_no_mark_file_is(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ConfigError, match="marks file"):
        marks.read(str(tmp_path / "m.json"))
