"""`adbooster plan` as it is typed."""

import json

import pytest

from adbooster.cli.console import main
from adbooster.engine import stage_records
from adbooster.storage.objects import Root
from tests.cli.test_console import refused, said

SIZE = ("plan", "--products", "1e6", "--cohorts", "30", "--churn", "0.02", "--gpu", "h100", "--price", "2.5")


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv("ADBOOSTER_ROOT_URI", raising=False)


def test_a_million_products(capsys):
    """120,000 requests of four paintings of 25 steps at 54.5 a second: 61.2 hours."""
    page = said(capsys, *SIZE, "--targeting", "top_n:6", "--steps", "25")
    for text in (
        "6,000,000 requests",
        "GPU-hours, h100, at least",
        "61.2",
        "153",
        "published by others",
        "not measured",
    ):
        assert text in page
    found = json.loads(said(capsys, *SIZE, "--targeting", "top_n:6", "--steps", "25", "--json"))
    assert found["night"]["gpu_hours"] == pytest.approx(120_000 * 4 * 25 / 54.5 / 3600, rel=1e-3)
    assert found["night"]["euros"] == pytest.approx(2.5 * found["night"]["gpu_hours"])
    assert found["night"]["gpus"] == 11
    assert "clip_s" in found["not_measured"]


def test_settings_of_a_file_are_taken_and_flags_go_before_them(tmp_path, capsys):
    file = tmp_path / "night.yaml"
    recipe = "{candidates: 2, num_inference_steps: 10, placements: [square, story], cache_every: 2}"
    file.write_text(
        f"root_uri: {tmp_path}/root\n"
        f"generate:\n  weights: w\n  rank_model: r\n  recipe: {recipe}\n  targeting: {{rule: top_n, n: 3}}\n"
    )
    found = json.loads(said(capsys, *SIZE, "--config", str(file), "--json"))
    assert found["requests"] == 6_000_000
    assert found["night"]["gpu_hours"] == pytest.approx(120_000 * 2 * 10 / 54.5 / 3600, rel=1e-3)
    assert found["notes"][0] == "no run has measured the stages of generate"
    assert "cache_every 2" in found["notes"][-1]
    other = json.loads(said(capsys, *SIZE, "--config", str(file), "--candidates", "4", "--placements", "1", "--json"))
    assert (other["requests"], other["night"]["gpu_hours"]) == (3_000_000, pytest.approx(found["night"]["gpu_hours"]))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--churn", "1.5"), "--churn 1.5: Input should be less than or equal to 1"),
        (("--products", "-5"), "--products -5: Input should be greater than or equal to 1"),
        (("--products", "1.5"), "--products 1.5 should be a whole number"),
        (("--products", "inf"), "--products inf should be a whole number"),
        (("--price", "-1"), "--price -1.0: Input should be greater than or equal to 0"),
        (("--price", "nan"), "--price nan: Input should be a finite number"),
        (("--rounds", "inf"), "--rounds inf: Input should be a finite number"),
        (("--hours", "0"), "--hours 0.0: Input should be greater than 0"),
        (("--retention", "-1"), "--retention -1.0"),
        (("--candidates", "0"), "--candidates 0: Input should be greater than or equal to 1"),
        (("--steps", "0"), "--steps 0: Input should be greater than or equal to 1"),
        (("--format", "bmp"), "--format 'bmp': Input should be"),
        (("--gpu", "abacus"), "no step of sd15 on abacus has been measured"),
        (("--targeting", "top_n:0"), "--targeting top_n:0 is none"),
        (("--measured", "speed=9"), "--measured speed=9 is no figure"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, more, sentence):
    code, text = refused(capsys, *SIZE, *more)
    assert code == 2
    assert sentence in text
    assert len(text.strip().splitlines()) == 1


def test_a_table_s_pairs_are_not_counted_here(tmp_path, capsys):
    file = tmp_path / "night.yaml"
    file.write_text(
        f"root_uri: {tmp_path}/root\nweights: w\nrank_model: r\ntargeting: {{rule: table, table_uri: t.csv}}\n"
    )
    assert "give --targeting table:3.2" in refused(capsys, *SIZE, "--config", str(file))[1]
    main([*SIZE, "--config", str(file), "--targeting", "table:2"])
    assert "2,000,000 requests" in capsys.readouterr().out


def test_a_catalog_s_runs_are_those_that_count(tmp_path, capsys):
    stages = {name: {"rows": 10, "gpus": 0.0, "row_s": 0.25} for name in ("Fetcher", "Shrinker", "Refiner")}
    Root(f"{tmp_path}/catalogs/shoes").write_json(f"runs/r1/{stage_records.FILE}", {"prepare": stages})
    below = (*SIZE, "--json", "--root-uri", str(tmp_path))
    measured = {
        catalog: {f["name"] for f in json.loads(said(capsys, *below, *catalog))["figures"] if f["by"] == "root"}
        for catalog in ((), ("--catalog", "shoes"))
    }
    assert measured == {(): set(), ("--catalog", "shoes"): {"fetch_s", "shrink_s", "refine_s"}}
    assert "--catalog 'a/b' should be letters" in refused(capsys, *below, "--catalog", "a/b")[1]
