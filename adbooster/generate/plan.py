"""What a night has to paint: the requests that are neither live nor staged, and what the tables know about each."""

import json
import logging
from collections import Counter
from dataclasses import dataclass
from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts.deadline import day_of
from adbooster.contracts.errors import ConfigError
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.generate.marks import MarkFigures, Marks
from adbooster.painting.brand_rules import BrandRules, read_brand_rules
from adbooster.painting.config import BrandFigures
from adbooster.painting.requests import plan_requests, revisions, staged_creatives
from adbooster.prompts.config import PromptFigures
from adbooster.storage import tables
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NightPlan:
    """One night's work, planned on one version of tables/creatives.

    base      that version; None if there is no table
    live      its rows (schema.CREATIVES)
    requests  all that should be live after the night (schema.REQUESTS)
    staged    what unfinished runs of the same recipe have painted (schema.STAGED)
    """

    recipe_id: str
    weights_revision: str
    base: int | None
    live: pa.Table
    requests: pa.Table
    staged: pa.Table
    marks: Marks
    mark_figures: MarkFigures
    prompt_figures: PromptFigures
    brand_figures: BrandFigures

    @property
    def missing(self) -> pa.Table:
        """Requests that are not live."""
        return without(self.requests, self.live)

    @property
    def to_paint(self) -> pa.Table:
        """Requests that are neither live nor staged."""
        return without(self.missing, self.staged)

    @property
    def already_staged(self) -> int:
        return len(set(self.staged["request_id"].to_pylist()) & set(self.requests["request_id"].to_pylist()))

    def gpu_hours_estimate(self) -> tuple[float | None, str | None]:
        """GPU-hours of what is to be painted at the rate measured on live creatives, and on which; None without any."""
        first = self.live.filter(pc.equal(self.live["rank"], 0))
        same = first.filter(pc.equal(first["recipe_id"], self.recipe_id))
        rows, measured_on = (same, "this recipe") if same.num_rows else (first, "other recipes")
        if not rows.num_rows:
            return None, None
        return round(pc.mean(rows["gpu_s"]).as_py() * self.to_paint.num_rows / 3600, 4), measured_on


def plan_night(config: GenerateConfig, root: Root) -> NightPlan:
    """Read the tables and name every request; writes prompts and marks of people to their tables, unless it is a dry run.

    raises  ConfigError if there is no usable product or no cohort
    """
    weights_revision, recipe = revisions(config)
    base = tables.version(root, "creatives")
    live = tables.read(root, "creatives", version=base)
    known_marks, mark_figures = marks.read_and_store(
        root, config.marks_uri, live, config.run_id, config.dry_run, config.signing_key_env
    )
    planned = plan_requests(
        root,
        config.recipe,
        recipe,
        config.prompts,
        config.targeting,
        config.rank_model,
        dry_run=config.dry_run,
        tokenizer_path=local_copy(config.weights) / "tokenizer",
        signing_key_env=config.signing_key_env,
        brand=_brand_rules(config, root),
    )
    requests, effects = known_marks.apply(planned.requests, live)
    return NightPlan(
        recipe_id=recipe,
        weights_revision=weights_revision,
        base=base,
        live=live,
        requests=requests,
        staged=staged_creatives(root, config.run_id, recipe),
        marks=known_marks,
        mark_figures=mark_figures.model_copy(update=effects._asdict()),
        prompt_figures=planned.prompt_figures,
        brand_figures=_with_live(planned.brand_figures, planned.forbidden, live),
    )


def _brand_rules(config: GenerateConfig, root: Root) -> tuple[BrandRules, date] | None:
    """The rules and the day they are applied on: that of the run's first plan, kept in runs/<run_id>/brand_rules.json."""
    if not config.brand_rules_uri:
        return None
    rules, name = read_brand_rules(config.brand_rules_uri, config.signing_key_env), _brand_file(config.run_id)
    day = config.brand_rules_day or _first_day(root, config.run_id)
    day = day or day_of(config.deadline, datetime.now().astimezone())
    if not config.dry_run:
        root.write_json(name, {"day": day.isoformat(), "uri": config.brand_rules_uri, "sha256": rules.sha256})
    return rules, day


def _first_day(root: Root, run_id: str) -> date | None:
    """The day that an unfinished run of this name has decided by."""
    if root.exists(f"runs/{run_id}/report.json"):
        return None
    try:
        return date.fromisoformat(json.loads(root.read(_brand_file(run_id)))["day"])
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError(
            f"{root.uri}/{_brand_file(run_id)} is not what this run wrote; remove it or give --brand-rules-day"
        ) from e


def _brand_file(run_id: str) -> str:
    return f"runs/{run_id}/brand_rules.json"


def _with_live(figures: BrandFigures, forbidden: pa.Table, live: pa.Table) -> BrandFigures:
    """The figures with the number of live creatives of forbidden pairs; what matches nothing is logged."""
    for note in figures.notes:
        log.warning("%s", note)
    if not forbidden.num_rows:
        return figures
    words = ", ".join(f"{n} {word}" for word, n in figures.rejects.items() if n)
    pair = ["product_id", "cohort_id"]
    leaves = live.select(pair).join(forbidden, pair, join_type="left semi").num_rows
    log.info("brand rules of %s forbid %d pairs (%s); %d creatives leave", figures.day, figures.pairs, words, leaves)
    return figures.model_copy(update={"live": leaves})


def cohort_shares(requests: pa.Table) -> dict[str, float]:
    """Each cohort's share of the requests, largest first."""
    counts = Counter(requests["cohort_id"].to_pylist())
    return {name: round(n / requests.num_rows, 4) for name, n in sorted(counts.items(), key=lambda e: (-e[1], e[0]))}


def without(rows: pa.Table, *others: pa.Table) -> pa.Table:
    """The anti-join on request_id: rows of which no other table has the request."""
    ids = pa.concat_arrays([chunk for t in others for chunk in t["request_id"].chunks] or [pa.array([], pa.string())])
    return rows.filter(pc.invert(pc.is_in(rows["request_id"], ids)))


def next_round(requests: pa.Table, again: dict[str, int]) -> pa.Table:
    """The requests to paint again, by request_id, with the round that each is painted in next."""
    rows = requests.filter(pc.is_in(requests["request_id"], pa.array(list(again), pa.string())))
    rounds = pa.array([again[q] for q in rows["request_id"].to_pylist()], pa.int32())
    return rows.set_column(rows.schema.get_field_index("round"), "round", rounds)
