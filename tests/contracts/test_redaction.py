"""No secret in logs, errors, reports or the run folder."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adbooster.cli import run
from adbooster.contracts.redaction import Formatter, redact
from tests.conftest import MODELS

REPO = Path(__file__).parents[2]
SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:pw@shop.example/f.csv", "https://***@shop.example/f.csv"),
        ("https://ghp_abc@shop.example/f.csv", "https://***@shop.example/f.csv"),
        ("s3://key:secret@bucket/x, twice s3://a:b@c/d", "s3://***@bucket/x, twice s3://***@c/d"),
        (
            "https://b.example/f?X-Amz-Credential=AK%2F1&X-Amz-Signature=12ab&x=1",
            "https://b.example/f?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
        ),
        ("http://e/f?page=2&access_token=abc#top", "http://e/f?page=2&access_token=***#top"),
        ("https://e/f?api_key=a&sig=b", "https://e/f?api_key=***&sig=***"),
        ("GET http://e/f?token=abc failed", "GET http://e/f?token=*** failed"),
        ("s3://shop/feed@2.tsv and ann@shop.example", "s3://shop/feed@2.tsv and ann@shop.example"),
        ("a key=value pair, https://e/f?monkey=1", "a key=value pair, https://e/f?monkey=1"),
    ],
)
def test_what_is_a_secret_in_a_uri(text, shown):
    assert redact(text) == shown
    assert redact({"a": [text, 3, None], text: (text,)}) == {"a": [shown, 3, None], shown: [shown]}


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("SHOP_API_KEY", SECRET)
    monkeypatch.setenv("SHOP_PASSWORD", SECRET + "-longer")
    monkeypatch.setenv("SHOP_TOKEN", "short")
    monkeypatch.setenv("SHOP_REGION", "no-secret-at-all")
    assert redact(f"{SECRET}-longer {SECRET} short no-secret-at-all") == "*** *** short no-secret-at-all"


def test_log_lines_and_their_tracebacks():
    try:
        raise OSError(f"https://ann:{SECRET}@shop.example/f does not answer")
    except OSError:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "asked %s", (f"http://e/f?token={SECRET}",), sys.exc_info()
        )
    line = Formatter("%(message)s").format(record)
    assert SECRET not in line
    assert "asked http://e/f?token=***" in line
    assert "OSError: https://***@shop.example/f does not answer" in line


def job(*flags: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *flags]
    return subprocess.run(command, cwd=REPO, env=os.environ | env, capture_output=True, text=True, timeout=120)


def test_no_secret_in_what_a_run_leaves_and_says(tmp_path):
    """A secret of the environment, given to a setting by ${...}: the job works with it and tells nobody."""
    (tmp_path / SECRET).mkdir()
    (tmp_path / SECRET / "cohorts.yaml").write_text(
        "- {id: c, query: a gift, context: a snowy day, family: e, size: 1}"
    )
    night = tmp_path / "night.yaml"
    night.write_text(
        f"root_uri: {tmp_path}/root\nrun_id: r\ncohorts: {{cohorts_uri: '{tmp_path}/${{SHOP_TOKEN}}/cohorts.yaml'}}"
    )
    done = job("jobs.cohorts", "--config", str(night), SHOP_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    left = [p for p in (tmp_path / "root" / "runs").rglob("*") if p.is_file()]
    assert {p.name for p in left} >= {"cohorts.config.json", "report.json"}
    assert "/***/cohorts.yaml" in next(p for p in left if p.name == "cohorts.config.json").read_text()
    for said in (done.stdout, done.stderr, *(p.read_text() for p in left)):
        assert SECRET not in said


def test_no_secret_in_an_error(tmp_path, misbehaving):
    address = f"http://ann:{SECRET}@127.0.0.1:{misbehaving.port}/status/404?token={SECRET}"
    models = ["--mask-model", str(MODELS / "mask" / "u2netp.onnx"), "--caption-model", str(MODELS / "caption")]
    done = job("jobs.prepare", "--root-uri", str(tmp_path), "--feed-uri", address, *models)
    assert done.returncode != 0
    assert "127.0.0.1" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_no_secret_in_the_traceback_of_what_nobody_foresaw(capsys):
    try:
        raise RuntimeError(f"https://ann:{SECRET}@e/f")
    except RuntimeError as e:
        run._print_redacted(type(e), e, e.__traceback__)
    said = capsys.readouterr().err
    assert "RuntimeError: https://***@e/f" in said
    assert "Traceback" in said
