"""New weights against those that are live on a fixed panel, before anything is painted with them."""

import logging
import time

import pyarrow as pa

from adbooster.canary.config import CanaryConfig, CanaryFigure, CanaryReport
from adbooster.contracts import evaluation
from adbooster.contracts.errors import CanaryRefused, ConfigError
from adbooster.contracts.evaluation import Interval
from adbooster.measure import measurements, run, statistics, subjects, trials
from adbooster.measure.config import Trial
from adbooster.storage import tables
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def canary(config: CanaryConfig) -> CanaryReport:
    """Paint the panel with both weights and compare them figure by figure; writes runs/<run_id>/canary.json."""
    started = time.monotonic()
    root = Root(config.root_uri)
    against = _against(root, config)
    figures: list[CanaryFigure] = []
    if against is None:
        reasons, passed = ["nothing is live that the weights could be compared with"], True
    elif content_hash(local_copy(against)) == content_hash(local_copy(config.weights)):
        reasons, passed = ["these are the weights that are live"], True
    elif config.dry_run:
        reasons, passed = ["dry run: nothing was painted"], True
    else:
        figures = _compared(config, root, against)
        reasons = [_reason(f) for f in figures if not f.passed]
        passed = not reasons
    report = CanaryReport(
        run_id=config.run_id,
        weights=config.weights,
        against=against,
        passed=passed,
        reasons=reasons,
        figures=figures,
        seconds=round(time.monotonic() - started, 1),
    )
    if not config.dry_run:
        root.write(f"runs/{config.run_id}/canary.json", report.model_dump_json(indent=2).encode())
    log.info("canary: %s %s", "passed" if passed else "refused", "; ".join(reasons))
    return report


def require(config: CanaryConfig) -> CanaryReport:
    """As `canary`; raises CanaryRefused, with every reason, if the weights fail."""
    report = canary(config)
    if not report.passed:
        raise CanaryRefused(
            f"the weights {config.weights} did worse than {report.against} on the panel and are not used: "
            f"{'; '.join(report.reasons)}"
        )
    return report


def _against(root: Root, config: CanaryConfig) -> str | None:
    """The weights to compare with; None if nothing is live.

    raises ConfigError if those of the live creatives cannot be found
    """
    if config.against:
        return config.against
    live = tables.read(root, "creatives", ["weights_revision", "fallback"])
    if not live.num_rows:
        return None
    revision = tables.metadata(root, "creatives").get("weights_revision") or live["weights_revision"][0].as_py()
    if root.exists(f"weights/{revision}"):
        return root.address(f"weights/{revision}")
    for uri in (config.base, config.weights):
        if uri and content_hash(local_copy(uri)) == revision:
            return uri
    raise ConfigError(
        f"the live creatives were painted with the weights {revision}, which are not below {root.address('weights')}; "
        "name the weights to compare with as canary.against"
    )


def _compared(config: CanaryConfig, root: Root, against: str) -> list[CanaryFigure]:
    products, cohorts = subjects.own_pictures(root), subjects.cohort_texts(root)
    sets = []
    for name, weights in (("live", against), ("candidate", config.weights)):
        trial = Trial(name=name, weights=weights, adapters=config.adapters, prompts=config.prompts)
        asked, _ = trials.trial_requests(root, config, trial, products, cohorts)
        sets.append(run.measure_trial(root, config, trial, asked))
    measurements.store(root, config.run_id, sets)
    live, candidate = sets
    return verdict(config, candidate, live)


def verdict(config: CanaryConfig, candidate: pa.Table, live: pa.Table) -> list[CanaryFigure]:
    """Every figure of two sets of measurements (schema.LOOKS) on the same panel, and whether the rule lets it pass."""
    figures = []
    for d in statistics.differences(candidate, live):
        kind = evaluation.KINDS[d.name]
        margin = config.margins.get(d.name)
        if margin is None and d.name in config.relative_margins:
            margin = config.relative_margins[d.name] * abs(d.second)
        passed = margin is None or not _worse(d.difference, kind.better, margin, config.rule)
        figures.append(
            CanaryFigure(
                name=d.name,
                unit=kind.unit,
                n=d.n,
                candidate=d.first,
                live=d.second,
                difference=d.difference,
                margin=margin,
                passed=passed,
            )
        )
    return figures


def _worse(difference: Interval, better: int, margin: float, rule: str) -> bool:
    """Whether a difference breaks the rule. `better` 0: any change is for the worse."""
    low, high = (difference.mean if end is None else end for end in (difference.low, difference.high))
    ways = {1: [(-difference.mean, -high, -low)], -1: [(difference.mean, low, high)]}
    for mean, least, most in ways.get(better, [*ways[1], *ways[-1]]):
        if most > margin if rule == "maybe_worse" else mean > margin and least > 0:
            return True
    return False


def _reason(figure: CanaryFigure) -> str:
    d = figure.difference
    spread = "" if d.low is None else f" [{d.low:+.3g}, {d.high:+.3g}]"
    return (
        f"{figure.name} {figure.candidate:.3g} against {figure.live:.3g} {figure.unit}: {d.mean:+.3g}{spread}, "
        f"margin {figure.margin:.3g}"
    )
