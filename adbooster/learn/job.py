"""Outcomes and marks -> what is shown and retired, and what pictures are chosen by: lift, shares, retirements, heads."""

import logging
import time

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.experiments import outcomes
from adbooster.experiments.allocation import VARIANTS, allocate_arms, posterior, retirements, shares
from adbooster.experiments.lift import lift
from adbooster.experiments.outcomes import Merged, Read
from adbooster.learn import decisions, training
from adbooster.learn.config import AllocationSummary, LearnConfig, Learning, LearnReport, RetiredVariant
from adbooster.reward.config import HeadsReport
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)
MOST_RETIRED = 100  # that learning.json lists


def learn(config: LearnConfig) -> LearnReport:
    """Read outcomes, and write what they decide: tables/outcomes, allocations and marks, runs/<run_id>/learning.json.

    raises  ConfigError for outcomes that cannot be used; nothing is changed then
    """
    started = time.monotonic()
    root = Root(config.root_uri)
    given, merged = _read(config, root)
    learning, changed, allocated = _decided(config, root, merged.outcomes)
    together = learning.lift.together.lift
    heads, factor = HeadsReport(), config.allocation.max_ctr_factor
    learning = learning.model_copy(update={"notes": [*_notes(given, merged), *learning.notes]})
    if not config.dry_run:
        _write(root, learning)  # decided, whatever becomes of the heads
        heads = training.train(config.heads, root, config.run_id, config.signing_key_env, factor)
    notes = [*learning.notes, *heads.notes]
    if not config.dry_run:
        found = {"notes": notes, "reward": heads.reward, "usability": heads.usability}
        _write(root, learning.model_copy(update=found))
    log.info("learn: %s outcomes, %s shares, %s retired", merged.outcomes.num_rows, allocated, learning.retired_count)
    return LearnReport(
        run_id=config.run_id,
        rows=given.rows,
        new=merged.new,
        corrected=merged.changes.num_rows - merged.new,
        unchanged=given.outcomes.num_rows - merged.changes.num_rows,
        broken=given.broken,
        unknown=given.unknown,
        outcomes=merged.outcomes.num_rows,
        lift=together and together.mean,
        lift_low=together and together.low,
        lift_high=together and together.high,
        allocated=allocated,
        allocations_changed=changed,
        retired=learning.retired_count,
        reward_uri=heads.reward and heads.reward.uri,
        usability_uri=heads.usability and heads.usability.uri,
        learning_uri=None if config.dry_run else f"{root.uri}/runs/{config.run_id}/learning.json",
        notes=notes,
        seconds=round(time.monotonic() - started, 1),
    )


def _write(root: Root, learning: Learning) -> None:
    root.write(f"runs/{learning.run_id}/learning.json", learning.model_dump_json(indent=2).encode())


def _read(config: LearnConfig, root: Root) -> tuple[Read, Merged]:
    """The file's outcomes, and all outcomes with them; unless this is a dry run they are stored."""
    base = tables.version(root, "outcomes")
    held = tables.read(root, "outcomes", version=base).combine_chunks()
    given = Read(schema.OUTCOMES.empty_table())
    if config.outcomes_uri:
        table = outcomes.read(config.outcomes_uri, config.signing_key_env)
        known = outcomes.known_creatives(root)
        given = outcomes.join(table, known, config.outcomes_uri, config.max_broken_share, config.day)
    merged = outcomes.merged(held, given.outcomes, config.run_id)
    if not config.dry_run:
        outcomes.store(root, merged, base, config.run_id)
    return given, merged


def _decided(config: LearnConfig, root: Root, rows: pa.Table) -> tuple[Learning, bool, int]:
    """What outcomes (schema.OUTCOMES) decide; whether shares changed, and how many there are.

    Retired variants give their share up on the same night, and are marked first: what is marked is shown no more. A run that
    goes on after it was killed retires no more than it would have. The day is the outcomes' last that can be, so that a run
    without new ones decides the same.
    """
    sound = rows.filter(pc.less_equal(rows["day"], pa.scalar(outcomes.last_day(config.day))))
    learning = Learning(
        run_id=config.run_id,
        day=pc.max(sound["day"]).as_py(),
        outcomes=rows.num_rows,
        lift=lift(rows, config.allocation.max_ctr_factor),
    )
    if learning.day is None:
        return learning.model_copy(update={"notes": ["There are no outcomes: nothing is decided by them."]}), False, 0
    marks_version = tables.version(root, "marks")
    marks = tables.read(root, "marks", version=marks_version)
    variants = decisions.live_variants(root, config, marks)
    approved = marks.filter(pc.equal(marks["mark"], "approved"))["creative_id"].combine_chunks()
    day, settings = learning.day, config.allocation
    rates = posterior(rows, variants.select(VARIANTS.names), settings, day)
    before = decisions.retired_before(root, marks, config.run_id)
    left = {"most": max(0, config.retirement.most - before.num_rows)}
    retired = retirements(rates, config.retirement.model_copy(update=left), approved)
    stays = variants.filter(pc.invert(pc.is_in(variants["creative_id"], retired["creative_id"].combine_chunks())))
    rates = posterior(rows, stays.select(VARIANTS.names), settings, day)
    families = sorted({f for f in tables.read(root, "cohorts", ["family"])["family"].to_pylist() if f is not None})
    held = tables.read(root, "allocations").combine_chunks()
    allocated = pa.concat_tables(
        [shares(rates, held, settings), allocate_arms(rows, families, config.experiments, held, settings, day)]
    )
    changed = False
    if not config.dry_run:
        decisions.publish_retired(root, retired, before, variants, marks_version, config.run_id)
        inputs = decisions.inputs_of(root, config, stays, families)
        changed = decisions.publish_shares(root, allocated, inputs, config.run_id)
        allocated = allocated if changed else held
    retired = pa.concat_tables([before, retired])
    found = {
        "allocation": decisions.summary(allocated, rates) if stays.num_rows else AllocationSummary(),
        "experiments": decisions.experiment_shares(allocated, config),
        "retired": [RetiredVariant(**row) for row in retired.slice(0, MOST_RETIRED).to_pylist()],
        "retired_count": retired.num_rows,
    }
    return learning.model_copy(update=found), changed, allocated.num_rows


def _notes(given: Read, merged: Merged) -> list[str]:
    """What became of rows that one would not expect."""
    left_out = {
        "of creatives that are not known here": given.unknown,
        "with counts, days or propensities that cannot be": given.broken,
    }
    notes = [f"{n} of {given.rows} outcomes are left out: {why}." for why, n in left_out.items() if n]
    if merged.replaced:
        notes.append(
            f"{len(merged.replaced)} outcomes are replaced: of their creatives and days it was by channel, or in all."
        )
    return notes
