"""What each remedy against forgetting does alone, and all of them, and what preferences teach: asked about products unseen.

    python -m tests.benchmarks.ablation --work ablation-root
    python -m tests.benchmarks.ablation --work ablation-root --only plain keep_base
    python -m tests.benchmarks.ablation --work ablation-root --only preference --paint-px 128
    python -m tests.benchmarks.ablation --work ablation-root --also '{"mine": {"keep_base": 4, "border_weight": 8}}'

Every way starts from the embedded base and sees the same 48 scenes of 24 products in the same order; `preference` instead
paints those products itself and learns which paintings `rank` prefers. The panel: the eight products that no embedded model
has seen, with some cohorts. Differences are paired, base subtracted, with 95 % bootstrap intervals over products. A killed
run goes on where it was.
"""

import argparse
import json
from pathlib import Path

import ray

from adbooster.cli.load import load
from adbooster.cli.run import run
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts.evaluation import Evaluation
from adbooster.contracts.recipe import Recipe
from adbooster.evaluate.config import EvaluateConfig
from adbooster.finetune.config import FinetuneConfig
from adbooster.prepare.config import PrepareConfig
from adbooster.tiny import world
from tests.benchmarks import paper

STEPS = 120
WAYS: dict[str, dict] = {
    "plain": {},
    "all": {"product_weight": 0.0, "border_weight": 8.0, "keep_base": 4.0, "prior": 0.3},
    "keep_base 2": {"keep_base": 2.0},
    "prior 0.5": {"prior": 0.5},
    "border_weight 8": {"border_weight": 8.0},
    "product_weight 0": {"product_weight": 0.0},
    "a rate of 5e-5, ema_decay 0.98": {"learning_rate": 5e-5, "ema_decay": 0.98},
    "lora rank 16, rate 1e-3": {"lora": {"rank": 16}, "learning_rate": 1e-3},
}
SHOWN = {
    "judge_score": "judge",
    "expansion_share": "expansion",
    "diversity_of_cohort": "diversity",
    "sharpness": "sharpness",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("ablation-root"), help="where roots are made, and found again"
    )
    parser.add_argument("--only", nargs="*", default=[*WAYS, "preference"], help="some of the ways")
    parser.add_argument("--also", type=json.loads, default={}, help="JSON: further ways, settings of finetune by name")
    parser.add_argument("--cohorts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument(
        "--paint-px", type=int, default=256, help="of training and painting; 128 takes a quarter of the time"
    )
    given = parser.parse_args()
    work = given.work.absolute()
    panel, others = paper.feeds(work)
    train = work / "train"
    for root, feed in ((train, others), (work / "panel", panel)):
        paper.job(PrepareConfig, root, "prepare", feed_uri=feed, allowed_file_root="/")
        paper.job(CohortsConfig, root, "cohorts")
    trials, trained = [{"name": "base", "weights": str(paper.TINY / "models" / "outpaint")}], {}
    ways = WAYS | {"preference": paper.preferences(_recipe(given, train), 24, 4)}
    for name, values in ({n: ways[n] for n in given.only if n in ways} | given.also).items():
        flags = ["--config", str(paper.TINY / "paper.yaml"), "--root-uri", str(train), "--run-id", "finetune"]
        config = load(FinetuneConfig, flags)
        plain = {
            "steps": given.steps,
            "size_px": given.paint_px,
            "latents": {"placements": 6, "encode": {"batch": 32}},
            "ema_decay": 0.95,
            "aspects": (1.0,),
            **dict.fromkeys(("border_weight", "product_weight"), 1.0),
            "keep_base": 0.0,
            "prior": 0.0,
            "learning_rate": 1.5e-4,
            "panel": {"pictures": 16, "paintings": 0, "every": 0},
        }
        config = FinetuneConfig.model_validate(config.model_dump() | plain | values)
        report = trained[name] = run(config, "adbooster.finetune.job:finetune")
        trials.append({"name": name, "weights": report.weights})
        accuracy = f", accuracy {report.accuracy_before} to {report.accuracy_after}" if report.pairs else ""
        print(f"{name}: {report.seconds} s, loss {report.loss_before} to {report.loss_after}{accuracy}", flush=True)
    found = _evaluated(work / "panel", panel, trials, given)
    ray.shutdown()
    print(_table(found, trained))


def _recipe(given: argparse.Namespace, root: Path) -> Recipe:
    flags = ["--config", str(paper.TINY / "paper.yaml"), "--root-uri", str(root)]
    return load(EvaluateConfig, flags).recipe.model_copy(update={"paint_px": given.paint_px})


def _evaluated(root: Path, feed: Path, trials: list[dict], given: argparse.Namespace) -> Evaluation:
    ids = paper.product_ids(feed)
    flags = ["--config", str(paper.TINY / "paper.yaml"), "--root-uri", str(root), "--run-id", "evaluate"]
    values = load(EvaluateConfig, flags).model_dump()
    values |= {"trials": trials, "panel": {"product_ids": [ids[p] for p in world.HELD_OUT], "cohorts": given.cohorts}}
    values["recipe"] |= {"candidates": given.candidates, "paint_px": given.paint_px}
    report = run(EvaluateConfig.model_validate(values), "adbooster.evaluate.job:evaluate")
    return Evaluation.model_validate(json.loads(Path(report.evaluation_uri).read_text()))


def _table(found: Evaluation, trained: dict) -> str:
    figures = {f.name: f for f in found.figures}
    lines = [("way", "loss", *SHOWN.values(), *(f"{s} minus base" for s in SHOWN.values()))]
    lines.append(("---",) * len(lines[0]))
    for name in ("base", *trained):
        loss = (
            f"{trained[name].loss_after:.4f}" if name in trained else f"{next(iter(trained.values())).loss_before:.4f}"
        )
        cells = [f"{figures[f'{name}: {kind}'].value:.3f}" for kind in SHOWN]
        against = (figures.get(f"{name} - base: {kind}") for kind in SHOWN)
        cells += [f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" if d else "" for d in against]
        lines.append((name, loss, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
