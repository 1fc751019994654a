"""Every command that README and docs show works as it stands, on a small root like the demo's.

Blocks marked `sh` are run line by line: jobs as dry runs, operators' commands in earnest. Addresses that belong to a shop
are replaced by those of the small root. Blocks marked `console` need a cluster, a hub or a daemon; of these the programs
and files that are ours must exist.
"""

import gzip
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adbooster import cli
from adbooster.cli import console
from adbooster.cli.load import load
from adbooster.cli.run import run
from adbooster.night.state import Night
from adbooster.storage import tables
from adbooster.storage.objects import Root

REPO = Path(__file__).parents[1]
FORMER = REPO / "tests" / "former_root"
TINY = REPO / "adbooster" / "tiny" / "models"
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), REPO / "CONTRIBUTING.md"]
MORE_SECTIONS = f"""
finetune: {{base: ./models/outpaint, device: cpu, held_out_share: 0.01}}
evaluate: {{judge_model: {TINY}/judge, zero_shot: false}}
canary: {{judge_model: {TINY}/judge}}
learn: {{retirement: {{most: 20}}}}
deliver: {{channels: [meta, google_merchant], public_base_url: "https://cdn.shop.example/ads"}}
"""
TARGETS = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))


def blocks(kind: str) -> list[tuple[str, list[str]]]:
    """(document, its commands, each on one line and without comments) of every fenced block of a kind."""
    found = []
    for path in DOCUMENTS:
        for block in re.findall(rf"```{kind}\n(.*?)```", path.read_text(), re.DOTALL):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found.append((path.name, [c for line in lines if (c := re.sub(r"(^|\s+)#.*", "", line).strip())]))
    return found


SH = [pytest.param(commands, id=f"{name}-{i}") for i, (name, commands) in enumerate(blocks("sh"))]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with night.yaml, a root that a night has written, models, marks, blind sheets; the current directory."""
    shutil.copytree(FORMER, tmp_path, dirs_exist_ok=True)
    settings = (tmp_path / "night.yaml").read_text().replace("../../adbooster/tiny/models/", "./models/")
    (tmp_path / "night.yaml").write_text(settings + MORE_SECTIONS)
    shutil.copytree(TINY / "mask", tmp_path / "models" / "mask")
    presets = tmp_path / "preset-models"  # the names that the preset sd15 expects
    presets.mkdir()
    for name, model in {
        "u2net.onnx": "mask/u2netp.onnx",
        "blip-image-captioning-base": "caption",
        "stable-diffusion-inpainting": "outpaint",
        "clip-vit-b-32": "rank",
    }.items():
        (presets / name).symlink_to(tmp_path / "models" / model)
    (tmp_path / "cluster").symlink_to(REPO / "cluster")
    shutil.copy(REPO / "ray_cluster.yaml", tmp_path)
    (tmp_path / "u2net.onnx").symlink_to(TINY / "mask" / "u2netp.onnx")
    root = Root(str(tmp_path / "root"))
    live = tables.read(root, "creatives")
    gone = live["creative_id"].to_pylist()[:1]
    tables.merge(root, "creatives", live.slice(0, 0), "creative_id", 0, {"run_id": "second"}, delete=gone)
    Night(run_id="20261124-010000", started_at=datetime(2026, 11, 24, 1, tzinfo=UTC)).save(root)
    mark = {"creative_id": live["creative_id"][1].as_py(), "mark": "approved"}
    (tmp_path / "marks").mkdir()
    (tmp_path / "marks" / "anna.json").write_text(json.dumps({"format": "adbooster-marks-1", "marks": [mark]}))
    with gzip.open(tmp_path / "shop" / "feed.csv.gz", "wt") as feed:
        feed.write("id,title,image[0].url\nP0,Teapot,teapot.png\n")
    pair = {"pair": 1, "creative_side": "left", "creative_id": "c", "product_id": "p", "cohort_id": "k"}
    key = [pair | {"family": "events", "against": "contextual"}]
    (tmp_path / "blind.key.json").write_text(json.dumps(key))
    for rater in ("anna", "ben"):
        (tmp_path / f"{rater}.csv").write_text(f"pair,rater,choice\n1,{rater},left\n")
    day = f"{live['creative_id'][1].as_py()},2024-11-24,100,3,0,1"
    (tmp_path / "outcomes.csv").write_text(f"creative_id,day,impressions,clicks,conversions,propensity\n{day}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OURS = {
    r"s3://shop/adbooster/weights/\w+|s3://shop/models/sd\b": "{shop}/models/outpaint",
    r"s3://shop/adbooster": "{shop}/root",
    r"s3://shop/feed\.tsv": "{shop}/shop/feed.tsv",
    r"https://shop\.example/feed\.csv\.gz": "{shop}/shop/feed.csv.gz",
    r"s3://shop/cohorts\.yaml": "{shop}/shop/cohorts.yaml",
    r"s3://shop/marks/": "{shop}/marks",
    r"s3://shop/outcomes\.parquet": "{shop}/outcomes.csv",
    r"s3://elsewhere/clip-vit-b-32": "{shop}/models/rank",
    r"/mnt/models": "{shop}/preset-models",
    r"--to 12\b": "--to 0",
    r"kubectl-image=\.\.\.": "kubectl-image=shop/kubectl@sha256:...",
    r"sha256:\.\.\.": "sha256:" + "0" * 64,
}
"""What belongs to a shop, and what stands for it in the small root."""


def local(command: str, shop: Path) -> str:
    for theirs, ours in OURS.items():
        command = re.sub(theirs, ours.format(shop=shop), command)
    assert not re.search(r"s3://|https?://", command), f"nothing in the small root stands for an address in {command!r}"
    return command


def dry_run(config_class, job: str) -> None:
    """What `jobs.*` call, in this process and on the session's Ray."""
    run(load(config_class, [*sys.argv[1:], *([] if "--dry-run" in sys.argv else ["--dry-run"])]), job)


@pytest.mark.parametrize("commands", SH)
def test_a_command_that_a_document_shows(commands, shop, local_ray, monkeypatch, capsys):
    monkeypatch.setattr(cli, "main", dry_run)
    for command in commands:
        words = shlex.split(local(command, shop))
        monkeypatch.setattr(sys, "argv", words)
        if words[0] == "export":
            for name, value in (word.split("=", 1) for word in words[1:]):
                monkeypatch.setenv(name, value)
        elif words[0] == "make":
            assert words[1] in TARGETS, command
        elif words[0] == "adbooster":
            console.main(words[1:])
        elif words[:2] == ["python", "-m"]:
            _module(words[2], words[3:], monkeypatch)
        else:
            assert words[0] == "python", f"{command!r} is run by no test; does it belong into a block marked `console`?"
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def _module(name: str, words: list[str], monkeypatch) -> None:
    """A job runs as a dry run; of a benchmark every flag must be one that it knows."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    if name.startswith("jobs."):
        if "--help" in words:
            with pytest.raises(SystemExit, match="^0$"):
                runpy.run_module(name, run_name="__main__")
        else:
            runpy.run_module(name, run_name="__main__")
        return
    done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=REPO, capture_output=True, text=True, check=True)
    for word in words:
        assert not word.startswith("--") or word.split("=")[0] in done.stdout, f"{name} knows no {word}"


def test_a_command_for_a_cluster_names_what_there_is():
    for name, commands in blocks("console"):
        for command in commands:
            for word in command.split():
                path = word.split("=")[-1]
                if re.match(r"(cluster|adbooster|tests|docs)/", path):
                    assert (REPO / path).exists(), f"{name}: {command}"


def test_commands_in_running_text_exist():
    shown = [w for p in DOCUMENTS for w in re.findall(r"`((?:adbooster|make|python -m) [a-z][^`]*)`", p.read_text())]
    assert len(shown) > 20
    for command in shown:
        first, *words = command.split()
        if first == "make":
            assert words[0] in TARGETS, command
        elif first == "python" and "*" not in words[1]:
            assert (REPO / Path(*words[1].split("."))).with_suffix(".py").exists(), command
        elif first == "adbooster":
            with pytest.raises(SystemExit) as e:
                console.main([words[0], "--help"])
            assert e.value.code == 0, command


def test_every_link_between_documents_leads_somewhere():
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), f"{path.name}: {target}"
            if anchor and there.suffix == ".md":
                assert anchor in headings(there), f"{path.name}: {target}#{anchor}"


def headings(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_files_and_tests_that_documents_name_exist():
    for path in DOCUMENTS:
        for name, test in re.findall(r"`(\w+/[\w/]+\.py)(?:::(\w+))?`", path.read_text()):
            there = [p for folder in ("", "tests", "adbooster") if (p := REPO / folder / name).exists()]
            assert there, f"{path.name} names {name}"
            assert not test or f"def {test}(" in there[0].read_text(), f"{path.name} names {name}::{test}"


def test_the_python_names_of_the_architecture_exist():
    """`room.module.name` in docs/architecture.md."""
    text = (REPO / "docs" / "architecture.md").read_text()
    rooms = sorted(p.parent.name for p in (REPO / "adbooster").glob("*/__init__.py"))
    dotted = re.findall(rf"`((?:{'|'.join(rooms)})\.[a-z_]+(?:\.\w+)*)`", text)
    assert len(dotted) > 20
    for name in dotted:
        room, module, *attributes = name.split(".")
        source = REPO / "adbooster" / room / f"{module}.py"
        assert source.exists(), name
        for attribute in attributes:
            assert re.search(rf"(def|class) {attribute}\b", source.read_text()), name


def test_the_readme_points_to_every_document():
    readme = (REPO / "README.md").read_text()
    assert [p.name for p in (REPO / "docs").glob("*.md") if f"docs/{p.name}" not in readme] == []
