"""Creatives -> what they are worth: the paper's table by a model that never ranked, and what CLIP does not see."""

import logging
import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from adbooster import blind, comparison, evaluator, eyes, figures, looks, outcomes, plan, report, schema, tables, trials
from adbooster.errors import ConfigError
from adbooster.evaluation import Evaluation, Figure
from adbooster.objects import Root, content_hash, local_copy
from adbooster.outcomes import Outcomes, OutcomesReport
from adbooster.pools import Pool
from adbooster.recipe import digest
from adbooster.trials import Trial, Trying

log = logging.getLogger(__name__)
RECIPES_READ = 20  # latest runs whose staged parts tell of candidates that gates turned down
NOT_THE_PAPER = (
    "The paper reports +15 % (z_QC) and about +13 % (z_P) on average over its categories and up to +27.87 % over the "
    "product image; it is not the same experiment: other products, profiles and photographs, another CLIP, and one CLIP "
    "that both ranks and judges."
)


class EvaluateConfig(Trying):
    """Settings of `jobs.evaluate`."""

    look: Pool = Pool(batch=16)
    """Actors that read stored creatives back and measure them."""
    most: int = Field(2000, ge=0)
    """Live creatives looked at, chosen by a hash of their id; 0: none."""
    most_scenes: int = Field(1000, ge=0)
    """The catalog's own scenes that FID and KID compare with."""
    trials: tuple[Trial, ...] = ()
    """Weights and prompts to paint the panel with and compare, the first with each of the others."""
    outcomes: Outcomes = Outcomes()
    """What users did."""
    sheet: blind.Sheet = blind.Sheet()
    """A blind side-by-side sheet for people."""


class EvaluateReport(BaseModel):
    """What `jobs.evaluate` did."""

    job: str = "evaluate"
    run_id: str
    creatives_version: int | None
    creatives: int
    """Live creatives of rank 0."""
    looked: int = 0
    """Of them measured, now or before."""
    unseen: dict[str, int] = {}
    """Of them not measured, by reject word; `gone`: its product or cohort is no longer in the tables."""
    trials: dict[str, int] = {}
    """Requests measured by trial; in a dry run, those of the panel."""
    to_retire: int = 0
    sheet_pairs: int = 0
    evaluation_uri: str | None = None
    gallery_uri: str | None = None
    """The run's page, where `generate` made one."""
    notes: list[str] = []
    seconds: float = 0.0
    evaluation: Evaluation | None = Field(None, exclude=True)
    """All that was found; it stands in runs/<run_id>/evaluation.json, not in the report."""


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure what is live and the trials, join outcomes, and write runs/<run_id>/evaluation.json; nothing is published."""
    started = time.monotonic()
    root = Root(config.root_uri)
    version = tables.version(root, "creatives")
    live = tables.read(root, "creatives", version=version)
    best = live.filter(pc.equal(live["rank"], 0))
    done = EvaluateReport(run_id=config.run_id, creatives_version=version, creatives=best.num_rows)
    products, cohorts = evaluator.own_pictures(root), evaluator.cohorts(root)
    if config.dry_run:
        done.trials = dict.fromkeys((t.name for t in config.trials), len(config.panel.pairs(products, cohorts)))
        return done
    found = Evaluation(run_id=config.run_id, judge=_name(config.judge_model), rank=_name(config.rank_model))
    scenes = _scenes(config, root, products)
    seen = _live(config, root, best, products, cohorts, scenes, found, done)
    kept = [scenes, seen, *_trials(config, root, products, cohorts, scenes, found, done)]
    looks.keep(root, config.run_id, kept, best["creative_id"].combine_chunks())
    found.figures += _rejects(root, best)
    if config.outcomes.uri:
        _outcomes(config, root, live, found, done)
    if config.sheet.pairs:
        there = best.filter(pc.is_in(best["creative_id"], seen["creative_id"]))
        done.sheet_pairs = _sheet(config, root, there, products, cohorts, found)
    if found.experiments:
        found.notes.append(NOT_THE_PAPER)
    root.write(f"runs/{config.run_id}/evaluation.json", found.model_dump_json(indent=2).encode())
    done.gallery_uri = report.write_report(root, config.run_id, found.model_dump(mode="json"))
    done.evaluation_uri = f"{root.uri}/runs/{config.run_id}/evaluation.json"
    done.notes, done.evaluation = found.notes, found
    done.seconds = round(time.monotonic() - started, 1)
    return done


def _name(uri: str) -> str:
    return f"{uri.rstrip('/').rsplit('/', 1)[-1]} {content_hash(local_copy(uri))}"


def _scenes(config: EvaluateConfig, root: Root, products: dict) -> pa.Table:
    rows = evaluator.scenes(products, eyes.revision(config), config.most_scenes)
    return evaluator.seen(root, config, rows, config.look)


def _live(config, root: Root, best: pa.Table, products, cohorts, scenes, found: Evaluation, done) -> pa.Table:
    """The looks of what is live; its experiments and figures go into `found`."""
    order = sorted(range(best.num_rows), key=lambda i: digest(best["creative_id"][i].as_py()))
    some = best.take(pa.array(order[: config.most], pa.int64()))
    rows = evaluator.to_see(some, products, cohorts, eyes.revision(config))
    seen = evaluator.seen(root, config, rows, config.look)
    unseen = Counter(w for w in seen["reject"].to_pylist() if w)
    if gone := some.num_rows - rows.num_rows:
        unseen["gone"] = gone
    seen = seen.filter(pc.is_null(seen["reject"]))
    done.looked, done.unseen = seen.num_rows, dict(unseen)
    found.notes += _notes(best, seen, unseen, config.most)
    if seen.num_rows:
        found.experiments += comparison.experiments("live", seen, published=True)
        found.figures += figures.figures(seen)
        found.figures += figures.distances(seen, scenes, bool(config.inception_model))
    return seen


def _notes(best: pa.Table, seen: pa.Table, unseen: Counter, most: int) -> list[str]:
    notes = []
    if not best.num_rows:
        notes.append("tables/creatives holds no creative: nothing that is live was measured; run jobs.generate.")
    elif seen.num_rows and pc.all(seen["fallback"]).as_py():
        notes.append(
            "All that is live are the products' own pictures: nothing painted was good enough to be published."
        )
    if 0 < most < best.num_rows:
        notes.append(f"{most} of {best.num_rows} live creatives were looked at, chosen by a hash of their id.")
    notes += [f"{n} live creatives could not be looked at: {word}." for word, n in sorted(unseen.items())]
    return notes


def _trials(config, root: Root, products, cohorts, scenes, found: Evaluation, done) -> list[pa.Table]:
    """The looks of every trial; its experiments and figures, and the differences between the first and each other."""
    sets: dict[str, pa.Table] = {}
    for trial in config.trials:
        asked, written = trials.to_try(root, config, trial, products, cohorts)
        if written.fallbacks:
            found.notes.append(f"{trial.name}: {written.fallbacks} of {written.pairs} prompts fell back to z_QC.")
        seen = trials.tried(root, config, trial, asked)
        sets[trial.name] = seen = seen.filter(pc.is_null(seen["reject"]))
        done.trials[trial.name] = seen.num_rows
        found.experiments += comparison.experiments(trial.name, seen)
        found.figures += figures.figures(seen, f"{trial.name}: ")
        found.figures += figures.distances(seen, scenes, bool(config.inception_model), f"{trial.name}: ")
    names = list(sets)
    for other in names[1:]:
        found.figures += _against(names[0], other, sets)
    return list(sets.values())


def _against(first: str, other: str, sets: dict[str, pa.Table]) -> list[Figure]:
    return [
        Figure(
            name=f"{other} - {first}: {d.name}",
            unit=figures.KINDS[d.name].unit,
            n=d.n,
            value=d.difference.mean,
            low=d.difference.low,
            high=d.difference.high,
            meaning=f"paired difference on the same products and cohorts: {figures.KINDS[d.name].meaning}",
        )
        for d in figures.differences(sets[other], sets[first])
    ]


def _rejects(root: Root, best: pa.Table) -> list[Figure]:
    """Reject shares by word: of the feed's pictures, and of candidates as far as the runs that painted them are kept."""
    samples = tables.read(root, "samples", ["reject", "retired_at"])
    words = samples.filter(pc.is_null(samples["retired_at"]))["reject"].to_pylist()
    found = figures.rejects(words, "pictures of the feed")
    runs = sorted(set(zip(best["run_id"].to_pylist(), best["recipe_id"].to_pylist(), strict=True)), reverse=True)
    turned_down, painted = [], 0
    for run_id, recipe in runs[:RECIPES_READ]:
        rows = tables.read_staged(root, plan.staged_folder(run_id, recipe), schema.STAGED)
        rows = rows.filter(pc.equal(rows["rank"], 0))
        turned_down += [w for some in rows["candidate_rejects"].to_pylist() for w in some or ()]
        painted += sum(len(s or ()) for s in rows["candidate_scores"].to_pylist())
    return found + figures.rejects([*turned_down, *[None] * max(0, painted - len(turned_down))], "candidates")


def _outcomes(config, root: Root, live: pa.Table, found: Evaluation, done: EvaluateReport) -> None:
    """Outcomes joined, written as outcomes.json and retire.json; their figures and what did not fit into `found`."""
    joined = outcomes.join(outcomes.read(config.outcomes.uri), live, config.outcomes)
    found.figures += outcomes.figures(joined, config.outcomes)
    found.notes += _unjoined(joined)
    done.to_retire = sum(c.retire for c in joined.creatives)
    root.write(f"runs/{config.run_id}/outcomes.json", joined.model_dump_json(indent=2).encode())
    root.write_json(f"runs/{config.run_id}/retire.json", outcomes.marks(joined))


def _unjoined(joined: OutcomesReport) -> list[str]:
    said = {
        f"of creatives that are not live ({', '.join(joined.unknown_examples)})": joined.unknown,
        "without id or day, or with counts that cannot be": joined.broken,
        "that repeat a creative and day": joined.duplicates,
    }
    return [f"{n} of {joined.rows} outcomes are left out: {why}." for why, n in said.items() if n]


def _sheet(config, root: Root, seen: pa.Table, products: dict, cohorts: dict, found: Evaluation) -> int:
    painted = seen.filter(pc.invert(seen["fallback"]))
    rows = evaluator.to_see(painted, products, cohorts, "").to_pylist()
    pairs = blind.write(root, f"runs/{config.run_id}/blind", rows, config.sheet)
    if pairs < config.sheet.pairs:
        found.notes.append(
            f"The blind sheet has {pairs} pairs; {config.sheet.pairs} were asked for and no more could be looked at."
        )
    return pairs


def check(config: EvaluateConfig) -> None:
    """raises ConfigError for what can be known before an actor starts: models, trials, outcomes"""
    trials.check(config, config.trials)
    names = Counter(t.name for t in config.trials)
    if twice := [name for name, n in names.items() if n > 1 or name == "live"]:
        raise ConfigError(f"trials have the name {twice[0]!r} twice, or it is that of what is live; give each its own")
    if config.outcomes.uri:
        outcomes.read(config.outcomes.uri)
