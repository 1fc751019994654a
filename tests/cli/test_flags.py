"""What a user types: mistyped flags, help, and how long a refusal takes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from adbooster.cli.flags import did_you_mean, flags_of
from adbooster.cli.load import load
from adbooster.contracts.errors import ConfigError
from adbooster.generate.config import GenerateConfig
from adbooster.night.config import NightlyConfig

REPO = Path(__file__).parents[2]
DEMO = str(REPO / "adbooster" / "tiny" / "demo.yaml")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--prepare.rules.max-reject-share", "--prepare.max-reject-share"),
        ("--generate.recipe.candidate", "--generate.recipe.candidates"),
        ("--root-url", "--root-uri"),
        ("--generate.min_coverage", "--generate.min-coverage"),
    ],
)
def test_a_flag_that_is_none_is_one_sentence_with_the_nearest(typed, meant):
    with pytest.raises(ConfigError) as e:
        load(NightlyConfig, ["--config", DEMO, f"{typed}=1"])
    assert str(e.value).startswith(f"unknown setting {typed}; did you mean {meant}")
    assert "\n" not in str(e.value)


def test_an_unknown_setting_in_a_file_too(tmp_path):
    path = tmp_path / "n.yaml"
    path.write_text("root_uri: x\nweights: w\nrank_model: r\nrecipe: {candidate: 4}\n")
    with pytest.raises(ConfigError, match=r"no setting 'recipe.candidate'; did you mean --recipe.candidates"):
        load(GenerateConfig, ["--config", str(path)])


def test_what_is_like_nothing_gets_no_guess():
    assert did_you_mean("--qqqqqqqqqq", GenerateConfig) == ""


@pytest.mark.parametrize("flags", [["--dry-run"], ["--no-dry-run"], ["--recipe.gates.max-people", "0.5"]])
def test_every_kind_of_flag_is_known(flags, tmp_path):
    path = tmp_path / "n.yaml"
    path.write_text("root_uri: x\nweights: w\nrank_model: r\n")
    load(GenerateConfig, ["--config", str(path), *flags])


def test_keys_of_a_dictionary_are_free():
    config = load(NightlyConfig, ["--config", DEMO, "--prepare.columns", '{"id": "sku"}'])
    assert config.prepare.columns == {"id": "sku"}


def run(*flags: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    command = [sys.executable, "-X", "importtime", "-m", "jobs.nightly", *flags]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    return done, time.monotonic() - started


@pytest.mark.parametrize(
    "flags", [("--help",), ("--config", DEMO, "--generate.min-coverage", "7"), ("--nonsense", "1")]
)
def test_help_and_a_wrong_setting_need_neither_torch_nor_ray(flags):
    done, seconds = run(*flags)
    assert done.returncode == (0 if flags == ("--help",) else 2)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "adbooster.night.config" in imported
    assert not imported & {"torch", "ray", "transformers", "diffusers"}
    assert seconds < 8  # under 1 s on an idle machine; tests share two cores


def test_help_lists_sections_and_twenty_settings(capsys):
    with pytest.raises(SystemExit) as e:
        load(NightlyConfig, ["--help"])
    assert e.value.code == 0
    text = capsys.readouterr().out
    assert text.count("\n  --") == 20
    assert "--prepare.feed-uri" in text
    assert "--config FILE" in text
    assert "--json" in text
    for section in ("prepare", "cohorts", "finetune", "generate", "evaluate"):
        assert f"\n  {section} " in text


def test_help_of_a_section_and_of_all(capsys):
    for asked, there in (("generate", "--generate.recipe.diversity"), ("all", "--evaluate.sheet.side-px")):
        with pytest.raises(SystemExit):
            load(NightlyConfig, ["--help", asked])
        assert there in capsys.readouterr().out
    with pytest.raises(ConfigError, match="there is no section 'generat'; sections are"):
        load(NightlyConfig, ["--help", "generat"])
    assert len(list(flags_of(NightlyConfig))) > 250
