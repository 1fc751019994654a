"""Samples x cohorts x weights -> creatives: paint K, put the product back, score, keep the best, publish at once."""

import logging
import time
from typing import Any

from adbooster.contracts.errors import CoverageTooLow
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig, GenerateReport
from adbooster.generate.plan import NightPlan, without
from adbooster.generate.publish import Publication, commit, plan_publication
from adbooster.generate.rounds import Painted, paint
from adbooster.generate.suggestions import suggest
from adbooster.report import gallery
from adbooster.report.page import write_report
from adbooster.report.uplift import uplift
from adbooster.seeing.checks import check_vision
from adbooster.storage.buckets import Snapshot
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def generate(config: GenerateConfig) -> GenerateReport:
    """Paint what is not painted yet, then publish the night as one commit of tables/creatives.

    raises  CoverageTooLow, PublishConflict; nothing of this run is live then, and what was painted is kept
            ConfigError for a vision model that does not see, before anything is painted
    """
    started = time.monotonic()
    root = Root(config.root_uri)
    if config.seeing and not config.dry_run:
        check_vision(config.seeing)
    with NightPlan(config, root) as night:
        planned = _planned(config, night)
        counts = planned.requests, planned.already_live, planned.already_staged, planned.to_paint
        log.info("%d requests: %d live, %d staged, %d to paint", *counts)
        if config.dry_run:
            if suggestion := suggest(config, root, planned.to_paint):
                print("\n".join(suggestion.lines(config)), flush=True)
                planned = planned.model_copy(update={"suggestion": suggestion.model_dump()})
            return planned.model_copy(update={"seconds": _since(started)})
        report = _paint_and_publish(config, root, night, planned, started)
    return report.model_copy(update={"seconds": _since(started)})


def _paint_and_publish(
    config: GenerateConfig, root: Root, night: NightPlan, planned: GenerateReport, started: float
) -> GenerateReport:
    painted = paint(config, night)
    rows, refused = night.marks.refuse(painted.rows)
    publication = plan_publication(night, rows, without(refused, rows))
    ended = {
        "left_empty": night.mark_figures.left_empty + publication.emptied.num_rows,
        "outdone": publication.outdone.num_rows,
    }
    mark_figures = night.mark_figures.model_copy(update=ended)
    report = planned.model_copy(
        update=painted.figures() | {"marks": mark_figures, "coverage": publication.coverage, "seconds": _since(started)}
    )
    if publication.coverage < config.min_coverage:
        why = _too_low(config, night, painted, publication)
        _write_page(config, root, night.live, report, why)
        raise CoverageTooLow(why)

    version = commit(root, config, night, publication)
    marks.leave_empty(root, publication.emptied, night.marks, config.run_id)
    marks.keep_champions(root, publication.outdone, night.marks, config.run_id)
    live = night.live if version == night.base else Snapshot(root, "creatives", version, most=config.part_rows)
    published: dict[str, Any] = {
        "published": publication.published,
        "retired": publication.retired,
        "creatives_version": version,
        "uplift": uplift(live.scan, night.families),
        "seconds": _since(started),
    }
    report = report.model_copy(update=published)
    return report.model_copy(update={"gallery_uri": _write_page(config, root, live, report)})


def _planned(config: GenerateConfig, night: NightPlan) -> GenerateReport:
    """The report of a night that has painted nothing yet."""
    gpu_hours, measured_on = night.gpu_hours_estimate()
    return GenerateReport(
        run_id=config.run_id,
        recipe_id=night.recipe_id,
        weights_revision=night.weights_revision,
        requests=night.requests,
        already_live=night.already_live,
        already_staged=night.already_staged,
        to_paint=night.to_paint,
        sold_out=night.sold_out,
        held_out=night.held_out,
        cohort_shares=night.cohort_shares(),
        prompts=night.prompt_figures,
        brand_rules=night.brand_figures,
        marks=night.mark_figures,
        creatives_version=night.base,
        gpu_hours_estimate=gpu_hours,
        estimated_from=measured_on,
    )


def _too_low(config: GenerateConfig, night: NightPlan, painted: Painted, publication: Publication) -> str:
    forbidden = night.brand_figures.live
    stay = f", with {forbidden} creatives that brand rules forbid" if forbidden else ""
    why = f", {painted.left} are left by the {painted.stopped}" if painted.left else ""
    return (
        f"{publication.coverage:.1%} of {publication.requests} requests are filled{why}, min_coverage is "
        f"{config.min_coverage:.1%}; nothing was published and the last night stays live{stay}; what is painted is kept"
    )


def _write_page(config: GenerateConfig, root: Root, live: Snapshot, report: GenerateReport, why_not: str = "") -> str:
    """The page of this run over what is live; `why_not` is the reason why nothing was published."""
    gallery.write(root, config.run_id, live.scan, report.model_dump(mode="json") | {"why_not": why_not}, config.gallery)
    return write_report(root, config.run_id)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)
