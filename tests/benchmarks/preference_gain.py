"""What preference tuning gains on products that nothing has seen: the embedded base against itself, tuned on its own paintings.

    python -m tests.benchmarks.preference_gain --work preference-root

The base paints products that it was trained on, `rank` orders the candidates, and the pairs are learned from; `judge`, which has
no part in that, scores paintings of the eight held-out products with the same seeds. In one process, without Ray. A killed run
goes on with the candidates it has. The last line is one JSON object; intervals are over products as clusters.
"""

import argparse
import json
import math
import platform
import time
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pap
import torch
import yaml

from adbooster.contracts import schema
from adbooster.contracts.naming import digest
from adbooster.contracts.recipe import Recipe
from adbooster.contracts.text import interest
from adbooster.finetune import examples, preference
from adbooster.finetune.config import Preference, TrainingConfig
from adbooster.finetune.inpainting import InpaintingModel
from adbooster.finetune.rows import pair_arrays
from adbooster.finetune.stages import PairPlacer
from adbooster.finetune.trainer import Trainer
from adbooster.finetune.validation import PairPanel
from adbooster.measure import statistics
from adbooster.measure.config import Trial, TrialsConfig
from adbooster.measure.stages import CandidateKeeper, TrialPainter
from adbooster.pictures import images
from adbooster.prompts.templates import product_words, prompt_qc
from adbooster.storage.objects import Root
from adbooster.tiny import world

TINY = Path(world.__file__).parent
BASE = TINY / "models" / "outpaint"
SIDE_PX, BATCH, HELD_OUT_SHARE = 256, 4, 0.15
SHOWN = ("judge_score", "rank_score", "diversity_of_cohort", "sharpness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("preference-root"), help="where pictures and weights are kept"
    )
    parser.add_argument("--products", type=int, default=20, help="of those that the base has seen, to learn on")
    parser.add_argument(
        "--cohorts", type=int, default=4, help="of the 30 profiles, for learning and for the comparison"
    )
    parser.add_argument("--steps", type=int, default=80, help="of training, each on 8 pairs")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--beta", type=float, default=2000.0)
    parser.add_argument(
        "--paint-px", type=int, default=128, help="256 is what the base is best at, and four times as dear"
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    started, root = time.monotonic(), Root(str(given.work.absolute()))
    painting = _painting(root, given, candidates=4)
    candidates = _candidates(root, painting, requests(root, world.SEEN[: given.products], given.cohorts))
    pairs = preference.better_over_worse(candidates, "rank", 0.01)
    print(
        f"{candidates.num_rows} candidates, {pairs.num_rows} pairs after {time.monotonic() - started:.0f} s", flush=True
    )
    weights, figures = _tuned(root, given, pairs)
    print(f"{figures} after {time.monotonic() - started:.0f} s", flush=True)
    asked = requests(root, world.HELD_OUT, given.cohorts)
    measured = [_measured(root, _painting(root, given, candidates=2), w, asked) for w in (weights, BASE)]
    found = {d.name: d for d in statistics.differences(*measured) if d.name in SHOWN}
    result: dict = {"pairs": pairs.num_rows, "steps": given.steps, "products": len(world.HELD_OUT), **figures}
    for name, d in found.items():
        ends = f"[{d.difference.low:+.4f}, {d.difference.high:+.4f}]"
        print(f"{name}: base {d.second:.4f}, tuned {d.first:.4f}, {d.difference.mean:+.4f} {ends} of {d.n} pairs")
        result |= {f"{name}_base": d.second, name: d.first, f"{name}_difference": d.difference.mean}
        result[f"{name}_difference_interval"] = [d.difference.low, d.difference.high]
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("torch", "diffusers", "open_clip_torch"))
    print(f"Python {platform.python_version()}, {versions}; {time.monotonic() - started:.0f} s in this run")
    print(json.dumps({k: _rounded(v) for k, v in result.items()}))


def _rounded(value: float | list[float]) -> float | list[float]:
    return [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)


def requests(root: Root, products: list[str], cohorts: int) -> pa.Table:
    """schema.TRIAL_REQUESTS of products with true masks and profiles chosen by the hash of their names."""
    profiles = yaml.safe_load((TINY / "profiles.yaml").read_text())
    profiles = sorted(profiles, key=lambda p: digest("panel", p["id"]))[:cohorts]
    rows = []
    for product in products:
        photo, mask = world.packshot(product, SIDE_PX)
        stored = {
            "photo_uri": root.put(images.encode_lossless(photo), "photo"),
            "mask_uri": root.put(images.encode_mask(mask), "png"),
        }
        words = product_words(world.caption(product, None), "")
        for p in profiles:
            name = digest(product, p["id"])
            rows.append(
                dict.fromkeys(schema.TRIAL_REQUESTS.names)
                | {"request_id": name, "look_id": name, "product_id": product, "cohort_id": p["id"], **stored}
                | {"placement": "square", "category": "", "family": p["family"], "negative_prompt": "", "round": 0}
                | {"text": interest(p["query"], p["context"]), "prompt_style": "qc", "neutral_uris": []}
                | {"prompt": prompt_qc(words, p["query"], p["context"]), "contextual_uris": []}
            )
    return pa.Table.from_pylist(rows, schema.TRIAL_REQUESTS)


def _painting(root: Root, given: argparse.Namespace, candidates: int) -> TrialsConfig:
    recipe = Recipe(
        candidates=candidates,
        layouts=1,
        num_inference_steps=12,
        guidance_scale=3.0,
        size_px=256,
        paint_px=given.paint_px,
        shadow="contact",
    )
    models = {f"{name}_model": str(TINY / "models" / name) for name in ("rank", "judge")}
    how = {"device": "cpu", "dtype": "bfloat16", "threads": given.threads, "paint_batch": 8, "zero_shot": False}
    return TrialsConfig(root_uri=root.uri, recipe=recipe, **models, **how)


def _candidates(root: Root, config: TrialsConfig, rows: pa.Table) -> pa.Table:
    """schema.CANDIDATES of the base; those of an earlier run are used."""
    trial, parts = Trial(name="candidates", weights=str(BASE)), []
    keeper = CandidateKeeper(root, config, trial, "runs/candidates")
    for at in range(0, rows.num_rows, BATCH):
        some = rows.slice(at, BATCH)
        file = f"runs/candidates/{digest(config.recipe.model_dump_json(), *some['request_id'].to_pylist())}.parquet"
        if not root.exists(file):
            buffer = pa.BufferOutputStream()
            pap.write_table(keeper(some), buffer)
            root.write(file, buffer.getvalue().to_pybytes())
        parts.append(pap.read_table(pa.BufferReader(root.read(file))))
    return pa.concat_tables(parts)


def _tuned(root: Root, given: argparse.Namespace, pairs: pa.Table) -> tuple[Path, dict[str, float]]:
    """Weights that have learned from the pairs, and what they make of those of products that were held out."""
    config = TrainingConfig(
        root_uri=root.uri,
        base=str(BASE),
        device="cpu",
        workers=0,
        threads=given.threads,
        precision="float32",
        size_px=given.paint_px,
        steps=given.steps,
        batch=8,
        learning_rate=given.learning_rate,
        ema_decay=0.95,
        preference=Preference(beta=given.beta),
    )
    training, held_out = (examples.pairs_to_place(part) for part in examples.split(pairs, HELD_OUT_SHARE))
    model = InpaintingModel(BASE, "cpu", given.threads, "float32")
    learner, plan, placer = Trainer(model, config), examples.PairPlan(training, config), PairPlacer(root, config)
    panel = PairPanel(model, config, root, held_out)
    with learner.averaged():
        figures = {f"{k}_before": v for k, v in panel.figures().items()}
    rows = plan.of_worker(0, 0, given.steps)
    for at in range(0, rows.num_rows, config.batch):
        loss = learner.step([model.encode(pair_arrays(placer(rows.slice(at, config.batch))))])["loss"]
        if learner.steps_done % 20 == 0:
            print(f"step {learner.steps_done}: loss {float(loss):.4f}", flush=True)
    with learner.averaged():
        figures |= {f"{k}_after": v for k, v in panel.figures().items()}
        assert math.isfinite(figures["loss_after"])
        folder = given.work.absolute() / f"tuned-{given.steps}-{given.learning_rate:g}-{given.beta:g}"
        kept = {n: p.detach().clone() for n, p in model.trainable().items()}
    whole = InpaintingModel(BASE, "cpu", given.threads, "float32")
    with torch.no_grad():
        for name, p in whole.trainable().items():
            p.copy_(kept[name])
    whole.save(folder)
    return folder, figures


def _measured(root: Root, config: TrialsConfig, weights: Path, rows: pa.Table) -> pa.Table:
    painter = TrialPainter(root, config, Trial(name=weights.name, weights=str(weights)))
    return pa.concat_tables(painter(rows.slice(at, BATCH)) for at in range(0, rows.num_rows, BATCH))


if __name__ == "__main__":
    main()
