"""The paper's experiment on the tiny world: 30 profiles x 8 products, K = 4, base and fine-tuned weights.

    python -m tests.benchmarks.paper --work paper-root
    python -m tests.benchmarks.paper --llm-base-url http://localhost:8000/v1 --llm-model some-instruct-model

The eight products were seen by none of the embedded models, nor in fine-tuning, which has 24 others and a root of its own.
A killed run goes on where it was.
"""

import argparse
import csv
import json
import platform
import time
from importlib import metadata
from pathlib import Path

import ray

from adbooster.cli.load import load
from adbooster.cli.run import run
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts.evaluation import Evaluation, Experiment, Interval
from adbooster.evaluate.config import EvaluateConfig
from adbooster.finetune.config import FinetuneConfig
from adbooster.prepare.config import PrepareConfig
from adbooster.tiny import world

TINY = Path(world.__file__).parent
MORE = ("backpack", "coat", "watch", "womans-hat")  # besides the eight that no embedded model has seen
HEAD = ("weights, prompt", "scored by", "pick", "family", "pairs", "creative", "on white", "own scene")
HEAD = (*HEAD, "minus white", "minus scene", "over white", "over scene")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("paper-root"), help="where the roots are made, and found again"
    )
    parser.add_argument("--products", type=int, default=8, help="up to 12; the embedded models have seen the last four")
    parser.add_argument("--quick", action="store_true", help="3 products, 6 profiles, K = 2")
    parser.add_argument("--llm-base-url", help="an OpenAI-compatible endpoint: prompts of style llm are compared too")
    parser.add_argument("--llm-model", default="")
    given = parser.parse_args()
    started = time.monotonic()
    panel, others = _feeds(given.work.absolute())
    weights = _weights(given.work.absolute() / "train", others)
    found = _evaluated(given, panel, weights)
    ray.shutdown()
    print(_table(found.experiments))
    print(_figures(found))
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "open_clip_torch", "scipy"))
    print(f"Python {platform.python_version()}, {versions}; {time.monotonic() - started:.0f} s in this run")
    judged = {e.experiment: e for e in found.experiments if (e.scorer, e.family) == ("judge", "all")}
    base, tuned = judged["base, qc"], judged["fine-tuned, qc"]
    print(f"ratio {tuned.creative / base.creative:.3f}")


def _feeds(work: Path) -> tuple[Path, Path]:
    """The catalog's feed in two: the panel's products, and those to fine-tune on."""
    with (TINY / "catalog" / "feed.tsv").open() as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    for row in rows:
        for column in ("image_link", "lifestyle_image_link"):
            row[column] = ",".join(str(TINY / "catalog" / p) for p in row[column].split(","))
    apart = {*world.HELD_OUT, *MORE}
    named = [(Path(row["image_link"]).stem, row) for row in rows]
    panel = [row for name, row in named if name in apart]
    train = [row for name, row in named if name not in apart]
    return _feed(work / "panel.tsv", panel), _feed(work / "train.tsv", train)


def _feed(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]), delimiter="\t")
        out.writeheader()
        out.writerows(rows)
    return path


def _job(config_class, root: Path, name: str, **values):
    """Run a job of paper.yaml; `values` are flags."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {"root_uri": root, "run_id": name, **values}.items()]
    return run(load(config_class, ["--config", str(TINY / "paper.yaml"), *flags]), f"adbooster.{name}.job:{name}")


def _weights(root: Path, feed: Path) -> str:
    _job(PrepareConfig, root, "prepare", feed_uri=feed, allowed_file_root=TINY / "catalog")
    return _job(FinetuneConfig, root, "finetune").weights


def _evaluated(given: argparse.Namespace, feed: Path, weights: str) -> Evaluation:
    root = given.work.absolute() / "panel"
    _job(PrepareConfig, root, "prepare", feed_uri=feed, allowed_file_root=TINY / "catalog")
    _job(CohortsConfig, root, "cohorts")
    config = load(
        EvaluateConfig, ["--config", str(TINY / "paper.yaml"), "--root-uri", str(root), "--run-id", "evaluate"]
    )
    styles = {"qc": {}}
    if given.llm_base_url:
        model = {"base_url": given.llm_base_url, "model": given.llm_model, "max_calls": 10_000}
        styles["llm"] = {"style": "llm", "llm": model}
    kinds = {"base": str(TINY / "models" / "outpaint"), "fine-tuned": weights}
    trials = [
        {"name": f"{kind}, {style}", "weights": uri, "prompts": prompts}
        for style, prompts in styles.items()
        for kind, uri in kinds.items()
    ]
    with feed.open() as f:
        ids = {Path(row["image_link"]).stem: row["id"] for row in csv.DictReader(f, delimiter="\t")}
    chosen = [ids[name] for name in (*world.HELD_OUT, *MORE)[: given.products]]
    values = config.model_dump() | {"trials": trials, "panel": {"product_ids": chosen}}
    if given.quick:
        values["panel"] = {"product_ids": chosen[:3], "cohorts": 6}
        values["recipe"] |= {"candidates": 2, "num_inference_steps": 4}
    report = run(EvaluateConfig.model_validate(values), "adbooster.evaluate.job:evaluate")
    return Evaluation.model_validate(json.loads(Path(report.evaluation_uri).read_text()))


def _table(rows: list[Experiment]) -> str:
    lines = [HEAD, ("---",) * len(HEAD)]
    for e in rows:
        scores = [f"{e.creative:.3f}", f"{e.neutral:.3f}", "" if e.contextual is None else f"{e.contextual:.3f}"]
        spreads = [_spread(e.difference_neutral), _spread(e.difference_contextual)]
        spreads += [_spread(e.uplift_neutral, 100), _spread(e.uplift_contextual, 100)]
        lines.append((e.experiment, e.scorer, e.pick, e.family, str(e.n), *scores, *spreads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(spread: Interval | None, factor: int = 1) -> str:
    if spread is None:
        return "not defined"
    digits, unit = (1, " %") if factor == 100 else (3, "")
    ends = "" if spread.low is None else f" [{factor * spread.low:+.{digits}f}, {factor * spread.high:+.{digits}f}]"
    return f"{factor * spread.mean:+.{digits}f}{unit}{ends}"


def _figures(found: Evaluation) -> str:
    lines = [f"{f.name}: {f.value:.4g} [{f.low}, {f.high}] {f.unit}, n {f.n}" for f in found.figures]
    return "\n".join([*lines, *found.notes])


if __name__ == "__main__":
    main()
