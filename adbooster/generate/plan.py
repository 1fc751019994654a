"""What a night has to paint: the requests that are neither live nor staged, and what the tables know about each.

Everything is found part by part of the products (storage.buckets): memory does not grow with the catalog. What is kept
of all parts is in columns of what changes, and on this machine's disk.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.deadline import day_of
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import PLACE, row_keys
from adbooster.generate import marks
from adbooster.generate.config import GenerateConfig
from adbooster.generate.marks import Effects
from adbooster.generate.value import LIVE, read_facts
from adbooster.painting import candidates
from adbooster.painting.brand_rules import BrandRules, read_brand_rules
from adbooster.painting.config import BrandFigures
from adbooster.painting.requests import Planner, revisions, staged_creatives
from adbooster.prompts.config import PromptFigures
from adbooster.storage import buckets, tables
from adbooster.storage.buckets import Part, Snapshot, Spill
from adbooster.storage.model_store import local_copy
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
WAVE_ROWS = 1 << 18  # requests that are given to the painters at one time
# Of a staged creative, what decides whether it is published; the rest is read when it is.
JUDGED = (
    *(
        "creative_id",
        "request_id",
        *PLACE,
        "rank",
        "round",
        "clip_score",
        "fallback",
        "fallback_reason",
        "sha256",
        "run_id",
    ),
    *("background_phash", "background_simhash", "gpu_s", "paint_batch", "candidate_rejects", "reject"),
)
_LIVE = ("creative_id", "request_id", *PLACE, "rank", "recipe_id", "gpu_s")


@dataclass
class PartFigures:
    """What a night knows of one part without reading it again.

    requests    that should be live after the night; filled  of these, those whose place has a creative now
    live        that need no painting: live under their very name, of a product that is sold out, or settled (Marks.settled)
    unasked     ids of live creatives in places that no request names
    champions   live creatives that stay beside what is painted in their place: creative_id and PLACE
    relabelled  live creatives whose pair is in other arms now, which give the same prompt: creative_id and arm
    """

    requests: int = 0
    filled: int = 0
    live: int = 0
    unasked: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    champions: pa.Table = field(default_factory=lambda: _no("creative_id", *PLACE))
    relabelled: pa.Table = field(default_factory=lambda: _no("creative_id", "arm"))


def _no(*names: str) -> pa.Table:
    return schema.CREATIVES.empty_table().select(list(names))


class NightPlan:
    """One night's work, planned on one version of tables/creatives. Use as a context: it holds files of this machine.

    live        that version, by part
    keep        creatives that a place may have
    parts       what everything is done in
    staged      what unfinished runs of the same recipe have painted of what is missing (columns JUDGED)
    families    of the cohorts, by their id
    lowest      names of the night's lowest requests, as many as the page shows
    facts       what requests are worth, of a night that may not paint them all; else None
    """

    def __init__(self, config: GenerateConfig, root: Root):
        """Read the tables and name every request; writes prompts and marks of people to their tables, unless it is a dry run.

        raises  ConfigError if there is no usable product or no cohort
        """
        self.root, self.keep = root, config.recipe.keep
        self.weights_revision, self.recipe_id = revisions(config)
        self.base = tables.version(root, "creatives")
        self.live = Snapshot(root, "creatives", self.base)
        self.marks, self.mark_figures = marks.read_and_store(
            root, config.marks_uri, self.live.scan, config.run_id, config.dry_run, config.signing_key_env
        )
        planner = Planner(
            root,
            config.recipe,
            self.recipe_id,
            config.prompts,
            config.targeting,
            config.rank_model,
            dry_run=config.dry_run,
            tokenizer_path=local_copy(config.weights) / "tokenizer",
            signing_key_env=config.signing_key_env,
            brand=_brand_rules(config, root),
            holdout=config.holdout,
            experiments=config.experiments,
        )
        self.families = dict(zip(*(planner.cohorts[n].to_pylist() for n in ("cohort_id", "family")), strict=True))
        self.parts = buckets.parts(max(self.live.rows, planner.most_requests), config.part_rows)
        self._folder = tempfile.TemporaryDirectory(prefix="adbooster-plan-")
        try:
            self._missing = Spill(Path(self._folder.name) / "missing", schema.REQUESTS)
            self._plan(config, planner)
            self._missing.close()
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def _plan(self, config: GenerateConfig, planner: Planner) -> None:
        self.of: dict[Part, PartFigures] = {}
        self.by_cohort, self.lowest = Counter[str](), pa.array([], pa.string())
        limited = config.deadline or config.gpu_hours is not None
        self.facts = read_facts(self.root, config.value) if limited else None
        staged = staged_creatives(self.root, config.run_id, self.recipe_id, JUDGED)
        own, named, rates = buckets.numbers(staged["product_id"]), [], _Rates(self.recipe_id)
        effects, leaving, again, self.sold_out, self.held_out = Effects(), 0, 0, 0, 0
        for part in self.parts:
            live, planned = self.live.read(part, list(_LIVE)), planner.plan(part)
            requests, changed = self.marks.apply(planned.requests, self._approved(part))
            mine = staged.filter(part.has(own))
            again += (
                pc.sum(pc.is_in(pc.unique(mine["request_id"]), requests["request_id"].combine_chunks())).as_py() or 0
            )
            champions = self._champions(part, planned.requests)
            requests, missing = _on_sale(requests, live, planned.sold_out)
            if champions.num_rows:
                missing = missing.filter(pc.invert(self.marks.settled(missing, champions, config.recipe.keep)))
            self.held_out += planned.held_out.num_rows
            self.sold_out += planned.requests.num_rows - requests.num_rows - changed.left_empty
            self._missing.add(missing)
            named.append(mine.filter(pc.is_in(mine["request_id"], missing["request_id"].combine_chunks())))
            relabelled = self._relabelled(part, requests) if config.experiments else _no("creative_id", "arm")
            self.of[part] = replace(_figures(requests, live, missing), champions=champions, relabelled=relabelled)
            effects, leaving = effects.plus(changed), leaving + _of_pairs(live, planned.forbidden)
            rates.add(live)
            if self.facts:
                self.facts.margins.add(self.live.read(part, LIVE), requests)
            self.by_cohort += schema.counted(requests["cohort_id"])
            self.lowest = candidates.lowest(self.lowest, requests["request_id"], config.gallery)
        self.staged, self.already_staged, self.rates = pa.concat_tables(named), again, rates
        self.mark_figures = self.mark_figures.model_copy(update=effects._asdict())
        self.prompt_figures: PromptFigures = planner.prompter.figures
        self.brand_figures = planner.judgement.figures() if planner.judgement else BrandFigures()
        self.brand_figures = _with_live(self.brand_figures, leaving)

    def _approved(self, part: Part) -> pa.Table:
        """The part's live creatives with what marks compare, where any are approved."""
        columns = ["creative_id", "request_id", *PLACE, "photo_sha256", "text"]
        return self.live.read(part, columns) if self.marks.approved else schema.CREATIVES.empty_table()

    def _champions(self, part: Part, requests: pa.Table) -> pa.Table:
        """The part's champions (Marks.champions), where any creative was retired."""
        if not self.marks.retired:
            return _no("creative_id", *PLACE)
        return self.marks.champions(requests, self.live.read(part, list(marks.CHAMPIONS)), self.recipe_id)

    def _relabelled(self, part: Part, requests: pa.Table) -> pa.Table:
        """The part's live creatives that their request's prompt made, and whose arm is another one than the request's."""
        live, same = self.live.read(part, ["creative_id", *PLACE, "prompt", "arm"]), (*PLACE, "prompt")
        at = pc.index_in(row_keys(live, same), row_keys(requests, same))
        arms = requests["arm"].combine_chunks().take(at)
        other = pc.and_(pc.is_valid(at), pc.not_equal(pc.fill_null(arms, ""), pc.fill_null(live["arm"], "")))
        return pa.table({"creative_id": live["creative_id"], "arm": arms}).filter(other)

    @property
    def requests(self) -> int:
        """How many there are."""
        return sum(of.requests for of in self.of.values())

    @property
    def already_live(self) -> int:
        return sum(of.live for of in self.of.values())

    @property
    def to_paint(self) -> int:
        """How many requests are neither live nor staged."""
        return self.requests - self.already_live - pc.count_distinct(self.staged["request_id"]).as_py()

    def missing(self, part: Part, columns: list[str] | None = None) -> pa.Table:
        """Requests of a part that are not live (schema.REQUESTS)."""
        return self._missing.read(part, columns)

    def unpainted(self, painted: pa.Table, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Requests that are not live and not among `painted`, part by part."""
        columns = columns and list(dict.fromkeys([*columns, "request_id"]))
        return (without(self.missing(part, columns), painted) for part in self.parts)

    def of_missing(self, staged: pa.Table) -> pa.Table:
        """Of rows with product_id and request_id those of requests that are not live."""
        own, found = buckets.numbers(staged["product_id"]), []
        for part in self.parts:
            mine = staged.filter(part.has(own))
            wanted = self.missing(part, ["request_id"])["request_id"] if mine.num_rows else mine["request_id"]
            found.append(mine.filter(pc.is_in(mine["request_id"], wanted.combine_chunks())))
        return pa.concat_tables(found)

    def cohort_shares(self) -> dict[str, float]:
        """Each cohort's share of the requests, largest first."""
        total = self.by_cohort.total()
        return {name: round(n / total, 4) for name, n in sorted(self.by_cohort.items(), key=lambda e: (-e[1], e[0]))}

    def gpu_hours_estimate(self) -> tuple[float | None, str | None]:
        """GPU-hours of what is to be painted at the rate measured on live creatives, and on which; None without any."""
        rate, measured_on = self.rates.mean()
        return None if rate is None else round(rate * self.to_paint / 3600, 4), measured_on


class _Rates:
    """GPU-seconds of live requests, of this recipe and of all."""

    def __init__(self, recipe_id: str):
        self.recipe_id, self.seconds, self.rows = recipe_id, [0.0, 0.0], [0, 0]

    def add(self, live: pa.Table) -> None:
        first = live.filter(pc.equal(live["rank"], 0))
        same = first.filter(pc.equal(first["recipe_id"], self.recipe_id))
        for i, rows in enumerate((same, first)):
            self.seconds[i] += pc.sum(rows["gpu_s"]).as_py() or 0.0
            self.rows[i] += len(rows) - rows["gpu_s"].null_count

    def mean(self) -> tuple[float | None, str | None]:
        """A request's, and what it was measured on."""
        for seconds, rows, on in zip(self.seconds, self.rows, ("this recipe", "other recipes"), strict=True):
            if rows:
                return seconds / rows, on
        return None, None


def _on_sale(requests: pa.Table, live: pa.Table, sold_out: pa.Array) -> tuple[pa.Table, pa.Table]:
    """The requests without those that nothing is live for and whose product cannot be bought, and those that are not live.

    What is live of such a product stays, and is not painted anew.
    """
    if not len(sold_out):
        return requests, without(requests, live)
    away = pc.is_in(requests["product_id"], sold_out)
    there = pc.is_in(places(requests), places(live))
    asked = requests.filter(pc.or_(pc.invert(away), there))
    missing = without(asked, live)
    return asked, missing.filter(pc.invert(pc.is_in(missing["product_id"], sold_out)))


def _figures(requests: pa.Table, live: pa.Table, missing: pa.Table) -> PartFigures:
    asked, there = places(requests), places(live)
    return PartFigures(
        requests=requests.num_rows,
        filled=pc.sum(pc.is_in(asked, there)).as_py() or 0,
        live=requests.num_rows - missing.num_rows,
        unasked=live["creative_id"].filter(pc.invert(pc.is_in(there, asked))).combine_chunks(),
    )


def places(rows: pa.Table) -> pa.Array:
    """What each creative is live for, as one text."""
    return row_keys(rows, PLACE)


def _of_pairs(live: pa.Table, pairs: pa.Table) -> int:
    pair = ["product_id", "cohort_id"]
    return live.select(pair).join(pairs, pair, join_type="left semi").num_rows if pairs.num_rows else 0


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


def _with_live(figures: BrandFigures, leaves: int) -> BrandFigures:
    """The figures with the number of live creatives of forbidden pairs; what matches nothing is logged."""
    for note in figures.notes:
        log.warning("%s", note)
    if not figures.pairs:
        return figures
    words = ", ".join(f"{n} {word}" for word, n in figures.rejects.items() if n)
    log.info("brand rules of %s forbid %d pairs (%s); %d creatives leave", figures.day, figures.pairs, words, leaves)
    return figures.model_copy(update={"live": leaves})


def without(rows: pa.Table, *others: pa.Table) -> pa.Table:
    """The anti-join on request_id: rows of which no other table has the request."""
    ids = pa.concat_arrays([chunk for t in others for chunk in t["request_id"].chunks] or [pa.array([], pa.string())])
    return rows.filter(pc.invert(pc.is_in(rows["request_id"], ids)))
