"""Measuring in pools of actors; what was measured before, on the same pictures by the same models, is not measured again."""

import logging

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.settings import Pool
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through
from adbooster.engine.progress import Progress
from adbooster.engine.staging import stage_parts
from adbooster.measure import measurements
from adbooster.measure.config import MeasureConfig, Trial, TrialsConfig
from adbooster.measure.stages import CandidateKeeper, Evaluator, TrialPainter
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
PROGRESS_S = 30  # between two lines of progress in the log


def measure_pictures(root: Root, config: MeasureConfig, rows: pa.Table, pool: Pool) -> pa.Table:
    """The measurements (schema.LOOKS) of schema.PICTURES_TO_MEASURE: those known, and the rest by a pool of actors."""

    def measure(left: pa.Table) -> None:
        preflight({"look": pool})
        log.info("measuring %d of %d pictures", left.num_rows, rows.num_rows)
        failures = Failures(root, config.run_id, "failed_measure")
        ds = through(dataset(left, pool.batch), Evaluator, pool, schema.LOOKS, failures, root=root, config=config)
        with Progress("measuring", left.num_rows, PROGRESS_S, root) as progress:
            stage_parts(ds, root, measurements.staged_folder(config.run_id), progress=progress)

    return measurements.known_or_measured(root, config.run_id, rows, measure)


def measure_trial(root: Root, config: TrialsConfig, trial: Trial, rows: pa.Table) -> pa.Table:
    """The measurements (schema.LOOKS) of a trial's requests: those known, and the rest painted and measured now."""

    def measure(left: pa.Table) -> None:
        preflight({"paint": config.paint})
        log.info("%s: painting %d of %d requests", trial.name, left.num_rows, rows.num_rows)
        init = {"root": root, "config": config, "trial": trial}
        failures = Failures(root, config.run_id, "failed_paint")
        ds = through(dataset(left, config.paint.batch), TrialPainter, config.paint, schema.LOOKS, failures, **init)
        with Progress(trial.name, left.num_rows, PROGRESS_S, root) as progress:
            stage_parts(ds, root, measurements.staged_folder(config.run_id), progress=progress)

    return measurements.known_or_measured(root, config.run_id, rows, measure)


def keep_candidates(root: Root, config: TrialsConfig, trial: Trial, rows: pa.Table, folder: str) -> pa.Table:
    """All candidates of a trial's requests as finished pictures (schema.CANDIDATES), scored by the rank model.

    folder  where pictures and rows are kept, relative to the root; what is there already is not painted again
    """
    known = _kept(root, folder)
    left = rows.filter(pc.invert(pc.is_in(rows["request_id"], known["request_id"])))
    if left.num_rows:
        preflight({"paint": config.paint})
        log.info("%s: painting %d of %d requests", trial.name, left.num_rows, rows.num_rows)
        init = {"root": root, "config": config, "trial": trial, "folder": folder}
        failures = Failures(root, config.run_id, "failed_paint")
        ds = through(
            dataset(left, config.paint.batch), CandidateKeeper, config.paint, schema.CANDIDATES, failures, **init
        )
        with Progress(trial.name, left.num_rows * config.recipe.candidates, PROGRESS_S, root) as progress:
            stage_parts(ds, root, f"{folder}/parts", progress=progress)
        known = _kept(root, folder)
    return known.filter(pc.is_in(known["request_id"], rows["request_id"]))


def _kept(root: Root, folder: str) -> pa.Table:
    """The candidates that are there, by address, each once: a task that Ray runs again may stage some a second time."""
    rows = tables.read_staged(root, f"{folder}/parts", schema.CANDIDATES)
    rows = rows.filter(pc.is_null(rows["reject"])).sort_by("uri")
    before = pa.chunked_array([pa.array([None, *rows["uri"].to_pylist()[:-1]], pa.string())])
    return rows.filter(pc.fill_null(pc.not_equal(rows["uri"], before), True)) if rows.num_rows else rows
