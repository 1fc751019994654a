"""Creatives -> what they are worth: the paper's table by a model that never ranked, and what CLIP does not see."""

import time
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.evaluation import KINDS, Evaluation, Experiment, Figure
from adbooster.contracts.naming import digest
from adbooster.evaluate import blind_sheet, comparison, outcomes, vision
from adbooster.evaluate.config import EvaluateConfig, EvaluateReport
from adbooster.evaluate.outcomes import OutcomesReport
from adbooster.experiments.outcomes import read
from adbooster.measure import measurements, run, statistics, subjects, trials
from adbooster.measure.config import CohortText, OwnPictures, Trial, revision
from adbooster.painting.requests import staged_folder
from adbooster.report import page
from adbooster.seeing.checks import check_vision
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

RECIPES_READ = 20  # latest runs whose staged parts are searched for candidates that gates rejected
NOT_THE_PAPER = (
    "The paper reports +15 % (z_QC) and about +13 % (z_P) on average over its categories and up to +27.87 % over the "
    "product image; it is not the same experiment: other products, profiles and photographs, another CLIP, and one CLIP "
    "that both ranks and judges."
)


@dataclass(frozen=True)
class Findings:
    """The results of one part of an evaluation; `measured` are its rows of schema.LOOKS."""

    measured: pa.Table
    experiments: list[Experiment] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Catalog:
    """What creatives are compared with: products' own pictures, cohorts' texts, and the catalog's scenes as measured."""

    products: dict[str, OwnPictures]
    cohorts: dict[str, CohortText]
    scenes: pa.Table


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure what is live and the trials, join outcomes, and write runs/<run_id>/evaluation.json; nothing is published.

    raises  ConfigError for a vision model that does not see, before anything is measured
    """
    started = time.monotonic()
    root = Root(config.root_uri)
    if config.seeing and not config.dry_run:
        check_vision(config.seeing)
    version = tables.version(root, "creatives")
    live = tables.read(root, "creatives", version=version)
    best = live.filter(pc.equal(live["rank"], 0))
    report = EvaluateReport(run_id=config.run_id, creatives_version=version, creatives=best.num_rows)
    products, cohorts = subjects.own_pictures(root), subjects.cohort_texts(root)
    if config.dry_run:
        pairs = len(config.panel.pairs(products, cohorts))
        return report.model_copy(update={"trials": dict.fromkeys((t.name for t in config.trials), pairs)})

    some = _chosen(best, config.most)
    asked = subjects.pictures_to_measure(some, products, cohorts, revision(config))
    scenes = subjects.catalog_scenes(products, revision(config), config.most_scenes)
    measured_now = run.measure_pictures(root, config, pa.concat_tables([scenes, asked]), config.look)
    is_scene = pc.is_in(measured_now["look_id"], scenes["look_id"].combine_chunks())
    catalog = Catalog(products, cohorts, measured_now.filter(is_scene))
    of_live, unmeasured = _live(config, best, measured_now.filter(pc.invert(is_scene)), some.num_rows, catalog)
    of_trials = {trial.name: _trial(config, root, trial, catalog) for trial in config.trials}
    measured = [f.measured for f in (of_live, *of_trials.values())]
    measurements.store(root, config.run_id, [catalog.scenes, *measured], best["creative_id"].combine_chunks())
    parts = [of_live, *of_trials.values()]
    parts.append(Findings(schema.LOOKS.empty_table(), figures=_differences(of_trials) + _rejects(root, best)))
    to_retire = sheet_pairs = 0
    if config.outcomes.uri:
        joined = outcomes.join(read(config.outcomes.uri, config.signing_key_env), live, config.outcomes)
        parts.append(_outcomes(config, root, joined))
        to_retire = sum(c.retire for c in joined.creatives)
    if config.sheet.pairs:
        measured_live = best.filter(pc.is_in(best["creative_id"], of_live.measured["creative_id"]))
        sheet_pairs = _sheet(config, root, measured_live, catalog)
        parts.append(Findings(schema.LOOKS.empty_table(), notes=_sheet_notes(sheet_pairs, config.sheet.pairs)))
    seen = None
    if config.seeing:
        figures, notes, seen = vision.look(root, config.run_id, config.seeing, some)
        parts.append(Findings(schema.LOOKS.empty_table(), figures=figures, notes=notes))
    evaluation = _joined(config, parts)
    root.write(f"runs/{config.run_id}/evaluation.json", evaluation.model_dump_json(indent=2).encode())
    results = {
        "looked": of_live.measured.num_rows,
        "unseen": unmeasured,
        "trials": {name: findings.measured.num_rows for name, findings in of_trials.items()},
        "to_retire": to_retire,
        "sheet_pairs": sheet_pairs,
        "seeing": seen,
        "evaluation_uri": f"{root.uri}/runs/{config.run_id}/evaluation.json",
        "gallery_uri": page.write_report(root, config.run_id, evaluation.model_dump(mode="json")),
        "notes": evaluation.notes,
        "evaluation": evaluation,
    }
    return report.model_copy(update=results | {"seconds": round(time.monotonic() - started, 1)})


def _joined(config: EvaluateConfig, parts: list[Findings]) -> Evaluation:
    experiments = [e for part in parts for e in part.experiments]
    notes = [n for part in parts for n in part.notes]
    return Evaluation(
        run_id=config.run_id,
        judge=_name(config.judge_model),
        rank=_name(config.rank_model),
        experiments=experiments,
        figures=[f for part in parts for f in part.figures],
        notes=[*notes, NOT_THE_PAPER] if experiments else notes,
    )


def _name(uri: str) -> str:
    return f"{uri.rstrip('/').rsplit('/', 1)[-1]} {content_hash(local_copy(uri))}"


def _chosen(best: pa.Table, most: int) -> pa.Table:
    """The creatives that are measured: at most so many, by a hash of their id."""
    order = sorted(range(best.num_rows), key=lambda i: digest(best["creative_id"][i].as_py()))
    return best.take(pa.array(order[:most], pa.int64()))


def _live(
    config: EvaluateConfig, best: pa.Table, measured: pa.Table, asked: int, catalog: Catalog
) -> tuple[Findings, dict[str, int]]:
    """What the measurements of `asked` live creatives say; and how many could not be measured, by reject word."""
    unmeasured = Counter(w for w in measured["reject"].to_pylist() if w)
    if gone := asked - measured.num_rows:
        unmeasured["gone"] = gone
    measured = measured.filter(pc.is_null(measured["reject"]))
    notes = _notes(best, measured, unmeasured, config.most)
    if not measured.num_rows:
        return Findings(measured, notes=notes), dict(unmeasured)
    figures = statistics.figures(measured)
    figures += statistics.distances(measured, catalog.scenes, bool(config.inception_model))
    experiments = comparison.experiments("live", measured, published=True)
    return Findings(measured, experiments, figures, notes), dict(unmeasured)


def _notes(best: pa.Table, measured: pa.Table, unmeasured: Counter[str], most: int) -> list[str]:
    notes = []
    if not best.num_rows:
        notes.append("tables/creatives holds no creative: nothing that is live was measured; run jobs.generate.")
    elif measured.num_rows and pc.all(measured["fallback"]).as_py():
        notes.append(
            "All that is live are the products' own pictures: nothing painted was good enough to be published."
        )
    if 0 < most < best.num_rows:
        notes.append(f"{most} of {best.num_rows} live creatives were measured, chosen by a hash of their id.")
    notes += [f"{n} live creatives could not be measured: {word}." for word, n in sorted(unmeasured.items())]
    return notes


def _trial(config: EvaluateConfig, root: Root, trial: Trial, catalog: Catalog) -> Findings:
    """One trial's requests painted, and measured."""
    requests, prompts = trials.trial_requests(root, config, trial, catalog.products, catalog.cohorts)
    notes = []
    if prompts.fallbacks:
        notes.append(f"{trial.name}: {prompts.fallbacks} of {prompts.pairs} prompts fell back to z_QC.")
    measured = run.measure_trial(root, config, trial, requests)
    measured = measured.filter(pc.is_null(measured["reject"]))
    figures = statistics.figures(measured, f"{trial.name}: ")
    figures += statistics.distances(measured, catalog.scenes, bool(config.inception_model), f"{trial.name}: ")
    return Findings(measured, comparison.experiments(trial.name, measured), figures, notes)


def _differences(of_trials: dict[str, Findings]) -> list[Figure]:
    """Paired differences between the first trial and each other."""
    names = list(of_trials)
    sets = {name: findings.measured for name, findings in of_trials.items()}
    return [figure for other in names[1:] for figure in _against(names[0], other, sets)]


def _against(first: str, other: str, sets: dict[str, pa.Table]) -> list[Figure]:
    return [
        Figure(
            name=f"{other} - {first}: {d.name}",
            unit=KINDS[d.name].unit,
            n=d.n,
            value=d.difference.mean,
            low=d.difference.low,
            high=d.difference.high,
            meaning=f"paired difference on the same products and cohorts: {KINDS[d.name].meaning}",
        )
        for d in statistics.differences(sets[other], sets[first])
    ]


def _rejects(root: Root, best: pa.Table) -> list[Figure]:
    """Reject shares by word: of the feed's pictures, and of candidates as far as the runs that painted them are kept."""
    samples = tables.read(root, "samples", ["reject", "retired_at"])
    words = samples.filter(pc.is_null(samples["retired_at"]))["reject"].to_pylist()
    of_feed = statistics.rejects(words, "pictures of the feed")
    runs = sorted(set(zip(best["run_id"].to_pylist(), best["recipe_id"].to_pylist(), strict=True)), reverse=True)
    rejected, painted = [], 0
    for run_id, recipe in runs[:RECIPES_READ]:
        rows = tables.read_staged(root, staged_folder(run_id, recipe), schema.STAGED)
        rows = rows.filter(pc.equal(rows["rank"], 0))
        rejected += [w for some in rows["candidate_rejects"].to_pylist() for w in some or ()]
        painted += sum(x is not None for s in rows["candidate_scores"].to_pylist() for x in s or ())
    return of_feed + statistics.rejects([*rejected, *[None] * max(0, painted - len(rejected))], "candidates")


def _outcomes(config: EvaluateConfig, root: Root, joined: OutcomesReport) -> Findings:
    """Outcomes written as outcomes.json and retire.json; their figures, and notes on rows left out."""
    root.write(f"runs/{config.run_id}/outcomes.json", joined.model_dump_json(indent=2).encode())
    root.write_json(f"runs/{config.run_id}/retire.json", outcomes.marks(joined))
    figures = outcomes.figures(joined, config.outcomes)
    return Findings(schema.LOOKS.empty_table(), figures=figures, notes=_unjoined(joined))


def _unjoined(joined: OutcomesReport) -> list[str]:
    left_out = {
        f"of creatives that are not live ({', '.join(joined.unknown_examples)})": joined.unknown,
        "without id or day, or with counts that cannot be": joined.broken,
        "that repeat a creative, day and channel": joined.duplicates,
    }
    return [f"{n} of {joined.rows} outcomes are left out: {why}." for why, n in left_out.items() if n]


def _sheet(config: EvaluateConfig, root: Root, creatives: pa.Table, catalog: Catalog) -> int:
    """Write the blind sheet; returns how many pairs it has."""
    painted = creatives.filter(pc.invert(creatives["fallback"]))
    rows = subjects.pictures_to_measure(painted, catalog.products, catalog.cohorts, "").to_pylist()
    return blind_sheet.write(root, f"runs/{config.run_id}/blind", rows, config.sheet)


def _sheet_notes(pairs: int, asked: int) -> list[str]:
    if pairs >= asked:
        return []
    return [f"The blind sheet has {pairs} pairs; {asked} were asked for and no more could be compared."]
