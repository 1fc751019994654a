"""The house: imports between rooms, what a room exports, how large a room may be, how a stage room reads."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LIBRARY = REPO / "adbooster"
ROOMS = sorted(p.parent.name for p in LIBRARY.glob("*/__init__.py"))
STAGES = ("prepare", "cohorts", "finetune", "generate", "evaluate", "canary", "learn", "deliver", "night")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_contracts_of_imports_hold():
    found = lint_imports(REPO)
    assert found.returncode == 0, found.stdout


WRONG = [
    ("generate/plan.py", "from adbooster.evaluate import outcomes", "imports between rooms point down"),
    ("contracts/naming.py", "from adbooster.storage import tables", "imports between rooms point down"),
    ("generate/plan.py", "from adbooster.storage import node_cache", "only what is exported"),
    ("painting/gates.py", "from adbooster.tiny import world", "does not know the tiny world"),
    ("report/uplift.py", "import ray", "Ray only in engine and finetune"),
    ("deliver/plan.py", "from adbooster.generate import marks", "imports between rooms point down"),
    ("evaluate/comparison.py", "import torch", "networks' libraries only where networks run"),
    ("prepare/config.py", "from adbooster.models import blip", "settings are checked without torch and Ray"),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The code alone, to be spoiled."""
    folder = tmp_path_factory.mktemp("copy")
    only_code = shutil.ignore_patterns("models", "catalog", "renders", "__pycache__")
    shutil.copytree(
        LIBRARY, folder / "adbooster", ignore=lambda where, names: only_code(where, names) if "tiny" in where else []
    )
    shutil.copytree(REPO / "jobs", folder / "jobs")
    (folder / "tests").mkdir()
    for name in ("__init__.py", "import_contracts.py"):
        shutil.copy(REPO / "tests" / name, folder / "tests" / name)
    shutil.copy(REPO / "pyproject.toml", folder)
    return folder


def test_a_wrong_import_breaks_its_contract(copy):
    """Each wrong import alone breaks the contract that is against it; all are tried in one copy, at once."""
    before = {}
    for file, line, _ in WRONG:
        path = copy / "adbooster" / file
        before.setdefault(path, path.read_text())
        path.write_text(path.read_text() + f"\n\ndef _wrong_{abs(hash(line))}():\n    {line}\n")
    found = lint_imports(copy)
    for path, text in before.items():
        path.write_text(text)
    assert found.returncode == 1
    broken = [line for line in found.stdout.splitlines() if " BROKEN" in line]
    for file, line, contract in WRONG:
        assert any(contract in one for one in broken), f"{line} in {file}: {broken}"
        imported = line.split()[1] if line.startswith("import") else "{1}.{3}".format(*line.split())
        assert imported in found.stdout, imported


def test_every_room_says_what_it_is_for():
    assert len(ROOMS) == 27
    for room in set(ROOMS) - {"tiny"}:
        doc = ast.get_docstring(ast.parse((LIBRARY / room / "__init__.py").read_text())) or ""
        assert "Enters:" in doc, room
        assert "Leaves:" in doc, room


def test_a_room_can_be_held_in_mind():
    for folder in [LIBRARY, *(LIBRARY / room for room in ROOMS)]:
        assert len(list(folder.glob("*.py"))) <= 14, folder
    assert [p.name for p in LIBRARY.glob("*.py")] == ["__init__.py"]


def test_stage_rooms_read_the_same():
    for room in STAGES:
        there = {p.name for p in (LIBRARY / room).glob("*.py")}
        assert there >= {"config.py", "checks.py", "job.py"}, room
        job = ast.parse((LIBRARY / room / "job.py").read_text())
        name = "nightly" if room == "night" else room
        assert name in {n.name for n in job.body if isinstance(n, ast.FunctionDef)}


def test_every_parameter_and_result_has_a_type():
    """In the library, its jobs and the cluster's scripts; `self`, `cls` and lambdas aside."""
    bare = []
    for path in [p for d in ("adbooster", "jobs", "cluster") for p in sorted((REPO / d).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                given = [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
                bare += [f"{path}:{node.lineno} {node.name}({x.arg})" for x in given if x.annotation is None]
                if node.returns is None and node.name != "__init__":
                    bare.append(f"{path}:{node.lineno} {node.name} ->")
    assert not bare, "\n".join(bare)


def test_the_tree_in_the_readme_is_the_architecture():
    text = (REPO / "README.md").read_text()
    assert len(text.encode()) <= 12_288
    for room in ROOMS:
        assert f"  {room}/" in text, room
