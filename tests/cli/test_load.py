"""What an operator meets: flags, files, exit codes, the last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adbooster.canary.config import CanaryConfig
from adbooster.cli.load import load
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts.errors import ConfigError
from adbooster.deliver.config import DeliverConfig
from adbooster.evaluate.config import EvaluateConfig
from adbooster.generate.config import GenerateConfig
from adbooster.night.config import NightlyConfig
from adbooster.prepare.config import PrepareConfig
from adbooster.tiny import world

REPO = Path(__file__).parents[2]
DEMO = Path(world.__file__).parent / "demo.yaml"


def job(name: str, *flags: str, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *flags],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | env,
    )


def test_flags_over_environment_over_file(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("root_uri: from-file\ncohorts_uri: ./c.yaml\nrun_id: file\n")
    monkeypatch.setenv("ADBOOSTER_ROOT_URI", "from-env")
    monkeypatch.setenv("ADBOOSTER_RUN_ID", "env")
    config = load(CohortsConfig, ["--config", str(tmp_path / "c.yaml"), "--run-id", "flag"])
    assert (config.run_id, config.root_uri) == ("flag", str(Path("from-env").absolute()))
    assert config.cohorts_uri == str(tmp_path / "c.yaml"), "paths in a file are relative to it"


def test_paths_in_a_list_are_relative_to_the_file_too(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "root_uri: r\ndeliver: {public_base_url: https://cdn.shop.example, channels: [meta, ./own.yaml, ../up.yaml]}\n"
    )
    config = load(DeliverConfig, ["--config", str(tmp_path / "c.yaml")])
    assert config.channels == ("meta", str(tmp_path / "own.yaml"), str(tmp_path.parent / "up.yaml"))


def test_a_night_may_deliver(tmp_path):
    without = yaml.safe_load(DEMO.read_text()) | {"deliver": None}
    deliver = {"channels": ["meta"], "public_base_url": "https://cdn.shop.example/"}
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(without | {"deliver": deliver}))
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(without))
    night = load(NightlyConfig, ["--config", str(tmp_path / "night.yaml"), "--run-id", "n", "--root-uri", "/r"])
    assert (night.deliver.root_uri, night.deliver.run_id) == ("/r", "n")
    assert night.deliver.public_base_url == "https://cdn.shop.example"
    assert load(NightlyConfig, ["--config", str(tmp_path / "without.yaml"), "--root-uri", "/r"]).deliver is None


def test_one_file_serves_every_job():
    night = load(NightlyConfig, ["--config", str(DEMO), "--run-id", "n", "--root-uri", "/r"])
    assert night.generate.root_uri == "/r"
    assert night.finetune.run_id == "n"
    alone = load(GenerateConfig, ["--config", str(DEMO), "--root-uri", "/r", "--recipe.candidates", "9"])
    assert alone.recipe.candidates == 9
    assert alone.weights == night.generate.weights
    assert load(PrepareConfig, ["--config", str(DEMO), "--max-reject-share", "0.5"]).max_reject_share == 0.5


@pytest.mark.parametrize("config_class", [CanaryConfig, EvaluateConfig])
def test_a_job_without_a_section_takes_over_what_generate_has(config_class, tmp_path):
    """A file with sections for other jobs, and none for this one."""
    path = tmp_path / "night.yaml"
    path.write_text(
        "root_uri: /r\nprepare: {feed_uri: f}\n"
        "generate: {weights: /w, rank_model: /rank, device: cpu, recipe: {candidates: 3}}\n"
    )
    more = ["--weights", "/new"] if config_class is CanaryConfig else []
    config = load(config_class, ["--config", str(path), "--judge-model", "/judge", *more])
    assert (config.rank_model, config.device, config.recipe.candidates) == ("/rank", "cpu", 3)
    assert config.root_uri == "/r"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cohorts-uri", "x"], "--root-uri is required"),
        (
            ["--config", "/nowhere.yaml"],
            "there is no config file '/nowhere.yaml'; presets, by name: flux-fill, sd15-lcm, sd15, sdxl",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(flags, says):
    with pytest.raises(ConfigError, match=says):
        load(CohortsConfig, flags)


def test_a_setting_nobody_knows_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("root_uri: x\ncohorts_uri: y\nchorts: z\n")
    with pytest.raises(ConfigError, match="no setting 'chorts'"):
        load(CohortsConfig, ["--config", str(tmp_path / "c.yaml")])


def test_environment_variables_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text("root_uri: ${SHOP}/adb\ncohorts_uri: '/$a$$b/$${SHOP}/${SHOP}${SHOP_2}.yaml'\n")
    monkeypatch.setenv("SHOP", "s3://shop")
    monkeypatch.setenv("SHOP_2", "${SHOP}")
    config = load(CohortsConfig, ["--config", str(tmp_path / "c.yaml")])
    assert config.root_uri == "s3://shop/adb"
    assert config.cohorts_uri == "/$a$$b/${SHOP}/s3://shop${SHOP}.yaml", "a value is not expanded again"


@pytest.mark.parametrize("value", ["", None])
def test_a_variable_that_is_not_set_is_named_with_its_place(tmp_path, monkeypatch, value):
    path = tmp_path / "c.yaml"
    path.write_text("root_uri: x\ngenerate:\n  weights: ${SHOP_MODELS}/sd\ncohorts:\n  cohorts_uri: y\n")
    monkeypatch.delenv("SHOP_MODELS", raising=False)
    if value is not None:
        monkeypatch.setenv("SHOP_MODELS", value)
    with pytest.raises(ConfigError, match=f"variable SHOP_MODELS, which generate.weights in {path} names, is not set"):
        load(GenerateConfig, ["--config", str(path)])
    assert load(CohortsConfig, ["--config", str(path)]).cohorts_uri.endswith("/y"), "other jobs' sections do not matter"


@pytest.mark.parametrize("text", ["${}", "${A-B}", "${SHOP", "${SHOP:-x}"])
def test_what_is_not_a_variable_name_is_said(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SHOP", "x")
    (tmp_path / "c.yaml").write_text(f"root_uri: x\ncohorts_uri: '{text}'\n")
    with pytest.raises(ConfigError, match=r"cohorts_uri in .*c.yaml holds \$\{ without a name"):
        load(CohortsConfig, ["--config", str(tmp_path / "c.yaml")])


def test_the_last_line_is_the_report_and_the_run_folder_tells_how(tmp_path):
    done = job("cohorts", "--config", str(DEMO), "--root-uri", str(tmp_path / "root"), "--run-id", "r1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["job"], report["cohorts"]) == ("cohorts", 30)
    run = tmp_path / "root" / "runs" / "r1"
    assert json.loads((run / "report.json").read_text()) == report
    told = json.loads((run / "cohorts.config.json").read_text())
    assert told["config"]["run_id"] == "r1"
    assert told["versions"]["ray"]


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("prepare", ["--feed-uri", "/nowhere.tsv"], "there is no feed at /nowhere.tsv"),
        ("prepare", ["--feed-uri", str(DEMO)], "lacks the column 'id'"),
        ("prepare", ["--caption-model", "/nowhere"], "there is no model at /nowhere"),
        ("generate", ["--weights", str(DEMO.parent)], "diffusers layout"),
        ("nightly", ["--generate.weights", "/nowhere"], "there is no model at /nowhere"),
    ],
)
def test_one_sentence_and_not_zero_before_anything_starts(tmp_path, name, flags, says):
    done = job(name, "--config", str(DEMO), "--root-uri", str(tmp_path / "root"), *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root" / "tables").exists()


def test_help_explains_every_flag():
    done = job("prepare", "--help", "all")
    assert done.returncode == 0
    for text in ("--allowed-file-root", "--max-reject-share", "--dry-run", "Folder below which local pictures may lie"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1: 2\n", "has the name 1, which is no text"),
        ("prepare: 3\ngenerate: {}\n", "prepare in .* should hold settings"),
        ("- 1\n", "holds a list"),
        ("\xff\0", "is not YAML"),
        ("root_uri: &a [*a]\n", "stands for more than"),
        ("x: " + "y" * (1 << 20), "a config file at most"),
    ],
)
def test_a_config_file_that_is_none_is_one_sentence(tmp_path, text, says):
    (tmp_path / "c.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=says):
        load(PrepareConfig, ["--config", str(tmp_path / "c.yaml")])
