"""New weights against those that are live on a fixed panel, before anything is painted with them."""

import logging
import time
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from adbooster import evaluator, eyes, figures, looks, tables, trials
from adbooster.errors import CanaryRefused, ConfigError
from adbooster.intervals import Interval
from adbooster.objects import Root, content_hash, local_copy
from adbooster.pools import Pool
from adbooster.prompting import Prompting
from adbooster.recipe import Adapter
from adbooster.settings import Uri
from adbooster.trials import Panel, Trial, Trying

log = logging.getLogger(__name__)
MARGINS = {
    "judge_score": 0.02,
    "rank_score": 0.03,
    "product_max_diff": 4.0,
    "expansion_share": 0.05,
    "second_copies": 0.05,
    "people": 0.05,
    "text_in_scene": 0.05,
    "near_duplicates_of_cohort": 0.1,
    "near_duplicates_of_product": 0.1,
    "clipped_share": 0.1,
    "exposure": 0.15,
    "fallbacks": 0.1,
}
RELATIVE_MARGINS = {"sharpness": 0.4, "diversity_of_cohort": 0.3, "diversity_of_product": 0.3}


class CanaryConfig(Trying):
    """Settings of the canary; in a night's file, what it shares with `generate` stands there."""

    inherits: ClassVar = {
        "generate": {**Trying.inherits["generate"], "base": "weights", "adapters": "adapters", "prompts": "prompts"}
    }
    weights: Uri
    """The new weights."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters on both."""
    against: Uri = ""
    """Weights to compare with; empty: those that the live creatives were painted with, below the root or `base`."""
    base: Uri = ""
    """Weights outside the root that may be the live ones."""
    prompts: Prompting = Prompting()
    """How a product and a cohort become text."""
    panel: Panel = Panel(products=12, cohorts=8)
    """The products and cohorts that are painted; what was painted with the live weights is kept from night to night."""
    look: Pool = Pool(batch=16)
    """Actors that look at the catalog's own scenes."""
    rule: Literal["surely_worse", "maybe_worse"] = "surely_worse"
    """surely_worse: refuse a figure that is worse by more than its margin and whose 95 % interval leaves out no change;
    maybe_worse: refuse a figure whose interval reaches beyond its margin, which asks for a larger panel."""
    margins: dict[str, float] = Field(default_factory=lambda: dict(MARGINS))
    """How much worse a figure may become, in its own unit. Figures that stand in neither table only inform."""
    relative_margins: dict[str, float] = Field(default_factory=lambda: dict(RELATIVE_MARGINS))
    """The same as a share of the figure under the live weights."""


class CanaryFigure(BaseModel):
    """One figure under both weights."""

    name: str
    unit: str
    n: int
    candidate: float
    live: float
    difference: Interval
    margin: float | None
    """in the figure's unit; null: it only informs"""
    passed: bool


class CanaryReport(BaseModel):
    """The verdict."""

    job: str = "canary"
    run_id: str
    weights: str
    against: str | None
    passed: bool
    reasons: list[str]
    """of the refusal, or why there was nothing to compare"""
    figures: list[CanaryFigure] = []
    seconds: float = 0.0


def canary(config: CanaryConfig) -> CanaryReport:
    """Paint the panel with both weights and compare them figure by figure; writes runs/<run_id>/canary.json."""
    started = time.monotonic()
    root = Root(config.root_uri)
    against = _against(root, config)
    done = CanaryReport(run_id=config.run_id, weights=config.weights, against=against, passed=True, reasons=[])
    if against is None:
        done.reasons = ["nothing is live that the weights could be compared with"]
    elif content_hash(local_copy(against)) == content_hash(local_copy(config.weights)):
        done.reasons = ["these are the weights that are live"]
    elif config.dry_run:
        done.reasons = ["dry run: nothing was painted"]
    else:
        done.figures = _compared(config, root, against)
        done.reasons = [_reason(f) for f in done.figures if not f.passed]
        done.passed = not done.reasons
    done.seconds = round(time.monotonic() - started, 1)
    if not config.dry_run:
        root.write(f"runs/{config.run_id}/canary.json", done.model_dump_json(indent=2).encode())
    log.info("canary: %s %s", "passed" if done.passed else "refused", "; ".join(done.reasons))
    return done


def require(config: CanaryConfig) -> CanaryReport:
    """As `canary`; raises CanaryRefused, with every reason, if the weights fail."""
    done = canary(config)
    if not done.passed:
        raise CanaryRefused(
            f"the weights {config.weights} did worse than {done.against} on the panel and are not used: "
            f"{'; '.join(done.reasons)}"
        )
    return done


def _against(root: Root, config: CanaryConfig) -> str | None:
    """The weights to compare with; None if nothing is live.

    raises ConfigError if those of the live creatives are nowhere to be found
    """
    if config.against:
        return config.against
    live = tables.read(root, "creatives", ["weights_revision", "fallback"])
    if not live.num_rows:
        return None
    revision = tables.metadata(root, "creatives").get("weights_revision") or live["weights_revision"][0].as_py()
    if root.exists(f"weights/{revision}"):
        return f"{root.uri}/weights/{revision}"
    for uri in (config.base, config.weights):
        if uri and content_hash(local_copy(uri)) == revision:
            return uri
    raise ConfigError(
        f"the live creatives were painted with the weights {revision}, which are not below {root.uri}/weights; "
        "say by canary.against what to compare with"
    )


def _compared(config: CanaryConfig, root: Root, against: str) -> list[CanaryFigure]:
    products, cohorts = evaluator.own_pictures(root), evaluator.cohorts(root)
    sets = []
    for name, weights in (("live", against), ("candidate", config.weights)):
        trial = Trial(name=name, weights=weights, adapters=config.adapters, prompts=config.prompts)
        asked, _ = trials.to_try(root, config, trial, products, cohorts)
        sets.append(trials.tried(root, config, trial, asked))
    looks.keep(root, config.run_id, sets)
    live, candidate = sets
    return verdict(config, candidate, live)


def verdict(config: CanaryConfig, candidate: pa.Table, live: pa.Table) -> list[CanaryFigure]:
    """Every figure of two sets of looks (schema.LOOKS) on the same panel, and whether the rule lets it pass."""
    found = []
    for d in figures.differences(candidate, live):
        kind = figures.KINDS[d.name]
        margin = config.margins.get(d.name)
        if margin is None and d.name in config.relative_margins:
            margin = config.relative_margins[d.name] * abs(d.second)
        passed = margin is None or not _worse(d.difference, kind.better, margin, config.rule)
        found.append(
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
    return found


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


def check(config: CanaryConfig) -> None:
    """raises ConfigError for models that cannot work and margins of figures that there are not"""
    eyes.check(config)
    named = [w for w in (config.weights, config.against) if w]
    trials.check(config, [Trial(name="canary", weights=w, adapters=config.adapters) for w in named])
    for name in (*config.margins, *config.relative_margins):
        if name not in figures.KINDS:
            raise ConfigError(f"canary.margins names the figure {name!r}; there are {', '.join(figures.KINDS)}")
