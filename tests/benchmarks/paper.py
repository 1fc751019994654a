"""The paper's experiment on the tiny world: 15 profiles x 16 products, K = 4, three kinds of weights, z_QC and z_P.

    python -m tests.benchmarks.paper --work paper-root
    python -m tests.benchmarks.paper --llm-base-url http://localhost:8000/v1 --llm-model some-instruct-model

z_P is written by the tiny language model, or by that of an endpoint. The 16 products are eight renders in two colours
each. No embedded model (captioner, ranker, judge, painter) has seen one of the eight, nor has fine-tuning, which has 24 others
and a root of its own. Preference tuning starts from the fine-tuned weights, with pairs of their own paintings of those 24,
ordered by `rank`: `judge` has no part in it. A killed run goes on where it was. The last line is one JSON object; its intervals
are over renders as clusters, as the two colours of one are alike.
"""

import argparse
import csv
import json
import platform
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from adbooster.cli.load import load
from adbooster.cli.run import run
from adbooster.cohorts.config import CohortsConfig
from adbooster.contracts.evaluation import Evaluation, Experiment, Interval
from adbooster.contracts.recipe import Recipe
from adbooster.evaluate.config import EvaluateConfig
from adbooster.finetune.config import FinetuneConfig
from adbooster.measure import intervals, statistics, subjects, trials
from adbooster.measure.run import measure_trial
from adbooster.models.outpainter import Outpainter
from adbooster.prepare.config import PrepareConfig
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root
from adbooster.tiny import check, world

TINY = Path(world.__file__).parent
SIDE_PX, FIRST_SEED, TURN, OTHER_COLOUR = 512, 7 * 10**6, 128, "-2"
MORE = ("backpack", "coat", "watch", "womans-hat")  # besides the eight that no embedded model has seen
# Of weights, as trials and as the last line call them.
KINDS = {"base": "base", "fine-tuned": "tuned", "preference-tuned": "preference"}
HEAD = ("weights, prompt", "scored by", "pick", "family", "pairs", "creative", "on white", "own scene")
HEAD = (*HEAD, "minus white", "minus scene", "over white", "over scene")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("paper-root"), help="where the roots are made, and found again"
    )
    parser.add_argument(
        "--products", type=int, default=16, help="up to 20; the embedded models have seen the last four"
    )
    parser.add_argument("--cohorts", type=int, default=15, help="of the 30 profiles, chosen by a hash of their names")
    parser.add_argument("--quick", action="store_true", help="3 products, 6 profiles, K = 2")
    parser.add_argument("--llm-base-url", help="an OpenAI-compatible endpoint that writes z_P instead")
    parser.add_argument("--llm-model", default="")
    given = parser.parse_args()
    started = time.monotonic()
    panel, others = feeds(given.work.absolute())
    train = given.work.absolute() / "train"
    weights = _weights(train, others)
    preferring = _preference_tuned(train, weights, given.quick)
    kinds = {"base": str(TINY / "models" / "outpaint"), "fine-tuned": weights, "preference-tuned": preferring}
    config = _config(given, panel, kinds)
    report = run(config, "adbooster.evaluate.job:evaluate")
    found = Evaluation.model_validate(json.loads(Path(report.evaluation_uri).read_text()))
    ray.shutdown()
    print(_split(panel, others))
    print(_table(found.experiments))
    print(_figures(found))
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "open_clip_torch", "scipy"))
    print(f"Python {platform.python_version()}, {versions}; {time.monotonic() - started:.0f} s in this run")
    print(json.dumps(_result(given, config, found, weights)))


def feeds(work: Path) -> tuple[Path, Path]:
    """The catalog's feed in two: the panel's products, and those to fine-tune on."""
    rows = _rows(TINY / "catalog" / "feed.tsv")
    for row in rows:
        for column in ("image_link", "lifestyle_image_link"):
            row[column] = ",".join(str(TINY / "catalog" / p) for p in row[column].split(","))
    apart = {*world.HELD_OUT, *MORE}
    named = [(Path(row["image_link"]).stem, row) for row in rows]
    panel = [row for name, row in named if name in apart]
    panel += [_turned(row, name, i, work / "pictures") for i, (name, row) in enumerate(named) if name in world.HELD_OUT]
    train = [row for name, row in named if name not in apart]
    return write_feed(work / "panel.tsv", panel), write_feed(work / "train.tsv", train)


def _rows(feed: Path) -> list[dict]:
    with feed.open() as f:
        return list(csv.DictReader(f, delimiter="\t"))


def product_ids(feed: Path) -> dict[str, str]:
    """By what each main picture is called."""
    return {Path(row["image_link"]).stem: row["id"] for row in _rows(feed)}


def _turned(row: dict, product: str, number: int, folder: Path) -> dict:
    """The product in its opposite colour, as another product: a packshot and two pictures in scenes, as the catalog has."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, links = list(world.SCENES), [folder / f"{product}{OTHER_COLOUR}.webp"]
    packshot, _ = world.packshot(product, SIDE_PX, turn=TURN)
    Image.fromarray(packshot).save(links[0], lossless=True)
    for i in range(2):
        scene = scenes[(number * 2 + i * 7 + 3) % len(scenes)]
        picture, _ = world.compose(scene, product, SIDE_PX, FIRST_SEED + 2 * number + i, turn=TURN)
        links.append(folder / f"{product}{OTHER_COLOUR}-{scene}.webp")
        Image.fromarray(picture).save(links[-1], quality=92)
    main, *others = map(str, links)
    return row | {"id": row["id"] + OTHER_COLOUR, "image_link": main, "lifestyle_image_link": ",".join(others)}


def write_feed(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]), delimiter="\t")
        out.writeheader()
        out.writerows(rows)
    return path


def job(config_class, root: Path, name: str, **values):
    """Run a job of paper.yaml; `values` are flags."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {"root_uri": root, "run_id": name, **values}.items()]
    return run(load(config_class, ["--config", str(TINY / "paper.yaml"), *flags]), f"adbooster.{name}.job:{name}")


def _weights(root: Path, feed: Path) -> str:
    job(PrepareConfig, root, "prepare", feed_uri=feed, allowed_file_root="/")
    job(CohortsConfig, root, "cohorts")
    return job(FinetuneConfig, root, "finetune").weights


def preferences(recipe: Recipe, products: int, cohorts: int) -> dict:
    """Settings of finetune that learn from pairs of the base's own paintings on a root's products, ordered by `rank`."""
    painting = {"dtype": "bfloat16", "paint": {"batch": 4}, "recipe": recipe.model_dump()}
    panel = {"products": products, "cohorts": cohorts}
    cold = {"by": "rank", "rank_model": str(TINY / "models" / "rank"), "panel": panel, **painting}
    off = {"keep_base": 0.0, "prior": 0.0, "latents": {}, "border_weight": 1.0}
    return off | {"batch": 8, "learning_rate": 2e-5, "preference": {"beta": 150.0, "cold_start": cold}}


def _preference_tuned(root: Path, weights: str, quick: bool) -> str:
    """The fine-tuned weights after preference tuning; what they are measured on, products and judge, is not in it."""
    flags = ["--config", str(TINY / "paper.yaml"), "--root-uri", str(root), "--run-id", "preference"]
    recipe = load(EvaluateConfig, flags).recipe
    changes = preferences(recipe, 4 if quick else 24, 4) | {"base": weights, "steps": 80}
    if quick:
        changes |= {"steps": 4, "preference": changes["preference"] | {"min_pairs": 2}}
    config = FinetuneConfig.model_validate(load(FinetuneConfig, flags).model_dump() | changes)
    return run(config, "adbooster.finetune.job:finetune").weights


def _config(given: argparse.Namespace, feed: Path, kinds: dict[str, str]) -> EvaluateConfig:
    """kinds  weights by the name of their kind; each is tried with every style of prompt"""
    root = given.work.absolute() / "panel"
    job(PrepareConfig, root, "prepare", feed_uri=feed, allowed_file_root="/")
    job(CohortsConfig, root, "cohorts")
    config = load(
        EvaluateConfig, ["--config", str(TINY / "paper.yaml"), "--root-uri", str(root), "--run-id", "evaluate"]
    )
    trials = [
        {"name": f"{kind}, {style}", "weights": uri, "prompts": prompts}
        for style, prompts in _styles(given).items()
        for kind, uri in kinds.items()
    ]
    ids = product_ids(feed)
    order = (*world.HELD_OUT, *(p + OTHER_COLOUR for p in world.HELD_OUT), *MORE)
    chosen = [ids[name] for name in order[: given.products]]
    values = config.model_dump() | {"trials": trials, "panel": {"product_ids": chosen, "cohorts": given.cohorts}}
    if given.quick:
        values["panel"] = {"product_ids": chosen[:3], "cohorts": 6}
        values["recipe"] |= {"candidates": 2, "num_inference_steps": 4}
    return EvaluateConfig.model_validate(values)


def _styles(given: argparse.Namespace) -> dict[str, dict]:
    """Settings of prompts by style."""
    model = {"local_model": str(TINY / "models" / "writer"), "engine": "transformers"}
    if given.llm_base_url:
        model = {"base_url": given.llm_base_url, "model": given.llm_model}
    return {"qc": {}, "llm": {"style": "llm", "llm": model}}


def _split(panel: Path, train: Path) -> str:
    """Which products which models have seen, a line each."""
    names = {f: [Path(row["image_link"]).stem for row in _rows(f)] for f in (panel, train)}
    parts = {
        "seen by captioner, ranker, judge and painter": world.SEEN,
        "fine-tuned on": names[train],
        "painted, seen by none of them": [n for n in names[panel] if n.removesuffix(OTHER_COLOUR) in world.HELD_OUT],
    }
    return "\n".join(f"{what}: {len(some)} products: {', '.join(some)}" for what, some in parts.items())


def _result(given: argparse.Namespace, config: EvaluateConfig, found: Evaluation, weights: str) -> dict:
    """The last line: what the targets are about. Keys without a style are of z_QC, those with `llm` of z_P."""
    render = {row["id"]: Path(row["image_link"]).stem for row in _rows(given.work.absolute() / "panel.tsv")}
    judged, fallbacks = _judged(config)
    pairs = sorted(set.intersection(*map(set, judged.values())))
    names = ("base, qc", "fine-tuned, qc")

    def compared(trial: str, other: str, key: str) -> dict:
        """One minus the other on the same pairs."""
        apart = np.array([judged[trial][k] - judged[other][k] for k in pairs])
        spread = intervals.mean(apart, [render[p].removesuffix(OTHER_COLOUR) for p, _ in pairs])
        assert spread is not None
        return {key: spread.mean, f"{key}_interval": [spread.low, spread.high]}

    figures = {f.name: f.value for f in found.figures}
    result = {"pairs": len(pairs), "products": len({p for p, _ in pairs})}
    for kind, short in KINDS.items():
        result[f"judge_{short}"] = np.mean([judged[f"{kind}, qc"][k] for k in pairs])
    result |= compared(names[1], names[0], "judge_difference")
    result |= compared("preference-tuned, qc", names[1], "judge_preference_difference")
    for short, kind in {
        "expansion": "expansion_share",
        "diversity": "diversity_of_cohort",
        "sharpness": "sharpness",
    }.items():
        result |= {f"{short}_base": figures[f"{names[0]}: {kind}"], short: figures[f"{names[1]}: {kind}"]}
    for kind, short in KINDS.items():
        result[f"judge_{short}_llm"] = np.mean([judged[f"{kind}, llm"][k] for k in pairs])
        result |= compared(f"{kind}, llm", f"{kind}, qc", f"llm_difference_{short}")
    result["llm_fallbacks"] = fallbacks
    result["scene_accuracy"] = scene_accuracy(weights, 24 if given.quick else 200)
    return {
        k: round(v, 4) if isinstance(v, float) else [round(x, 4) for x in v] if isinstance(v, list) else v
        for k, v in result.items()
    }


def _judged(config: EvaluateConfig) -> tuple[dict[str, dict[tuple[str, str], float]], int]:
    """The judge's score of every pair (product, cohort) by trial, all of which is known by now; and how many pairs of
    z_P a trial painted from z_QC, at most."""
    root, scores, fallbacks = Root(config.root_uri), {}, 0
    products, cohorts = subjects.own_pictures(root), subjects.cohort_texts(root)
    for trial in config.trials:
        requests, prompts = trials.trial_requests(root, config, trial, products, cohorts)
        measured = measure_trial(root, config, trial, requests)
        keys = zip(measured["product_id"].to_pylist(), measured["cohort_id"].to_pylist(), strict=True)
        scores[trial.name] = dict(zip(keys, statistics.values(measured)["judge_score"], strict=True))
        fallbacks = max(fallbacks, prompts.fallbacks)
    return scores, fallbacks


def scene_accuracy(weights: str, n: int) -> float:
    """Share of n paintings of unseen products whose scene a network names right that saw composed scenes only."""
    torch.set_num_threads(2)
    recipe = Recipe(num_inference_steps=20, guidance_scale=3.0, paint_px=check.PAINT_PX)
    outpainter = Outpainter(local_copy(weights), recipe, "cpu", "bfloat16", 25)
    return check.scene_classified_right(list(check.paint(outpainter, n)))


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
