"""Imports point down only."""

import ast
from pathlib import Path

import adbooster

LAYERS = [
    layer.split()
    for layer in (
        "errors settings rules redact",
        "schema colours images layout prompts recipe finish choose intervals seen",
        "mask caption outpaint inpainting rank gates clustering window llm variety",
        # storage and Ray; preparing; cohorts and prompts; training; painting; measuring and showing; the night
        "objects node_cache models pools tables vacuum rollback lock metrics "
        "formats feeds fetch changes pictures "
        "cohort_file interest_columns interests groups prompting llm_local "
        "learning examples learner latents checkpoints panel tracking training "
        "plan value allowance publish painter painting candidates marks "
        "evaluation eyes evaluator looks trials figures comparison outcomes blind summary report gallery "
        "due nights steps",
        "prepare cohorts finetune generate evaluate canary",
        "nightly",
        "cli console status_table",
    )
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {
    "ray": 3,
    "torch": 2,
    "diffusers": 2,
    "transformers": 2,
    "open_clip": 2,
    "onnxruntime": 2,
}  # lowest layer allowed
FOLDER = Path(adbooster.__file__).parent


def imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [a.name for a in node.names] if node.module == "adbooster" else [node.module.removeprefix("adbooster.")]
            )
            yield from ((n, node.module.startswith("adbooster")) for n in names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, False) for a in node.names)


def test_every_module_has_a_layer():
    assert {p.stem for p in FOLDER.glob("*.py")} - {"__init__"} == set(LEVEL)


def test_imports_point_down():
    for path in FOLDER.glob("*.py"):
        if path.stem == "__init__":
            continue
        for name, ours in imported(path):
            top = name.split(".")[0]
            if ours:
                assert top != "tiny", f"{path.stem} knows of the tiny world"
                assert LEVEL[top] <= LEVEL[path.stem], f"{path.stem} imports {name}, which lies above it"
                if LEVEL[path.stem] == 4:
                    assert LEVEL[top] < 4, f"the job {path.stem} imports the job {name}"
            elif top in HEAVY:
                assert LEVEL[path.stem] >= HEAVY[top], f"{path.stem} imports {top}"
