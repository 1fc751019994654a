"""The whole night: prepare, cohorts, finetune when due, canary, learn, generate, deliver, evaluate, maintain; resumable at the step that failed."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from adbooster.canary.job import canary, require
from adbooster.cohorts.job import cohorts
from adbooster.contracts import deadline
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.job import deliver
from adbooster.evaluate.job import evaluate
from adbooster.finetune.config import FinetuneReport
from adbooster.finetune.job import finetune
from adbooster.generate.config import GenerateConfig
from adbooster.generate.job import generate
from adbooster.learn.job import learn
from adbooster.night import state
from adbooster.night.config import SECTIONS, NightlyConfig, NightlyReport
from adbooster.night.schedule import Trained, not_due, remember, trained
from adbooster.night.state import Night
from adbooster.night.steps import Steps
from adbooster.prepare.job import prepare
from adbooster.storage.lock import NightLock
from adbooster.storage.maintenance import MaintainReport, maintain
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def nightly(config: NightlyConfig) -> NightlyReport:
    """Run the jobs in order; they exchange data only in the tables, and an error of one stops the night.

    raises  LockHeld if another night runs below the root, CanaryRefused for new weights that fail (nothing is painted and
            the last night stays live), and what the jobs raise
    """
    started = time.monotonic()
    if config.dry_run:
        return _planned(config, started)
    root = Root(config.root_uri)
    with NightLock(root, config.run_id, config.lock_ttl_s):
        night = _night(root, config)
        try:
            report = _steps(config, root, night)
        except BaseException as e:
            night.state, night.ended_at = "failed" if isinstance(e, Exception) else "stopped", datetime.now(UTC)
            night.save(root)
            log.error("night %s %s; go on with --resume --run-id %s", config.run_id, night.state, config.run_id)
            raise
        night.state, night.ended_at = "finished", datetime.now(UTC)
        night.save(root)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _steps(config: NightlyConfig, root: Root, night: Night) -> NightlyReport:
    steps = Steps(root, night, config.isolated)
    prepared = steps(prepare, config.prepare)
    grouped = steps(cohorts, config.cohorts)
    last, tuned = trained(root), None
    why = _why_not(config, root, night, last)
    if why:
        steps.skip("finetune", why)
    elif config.finetune:
        tuned = steps(finetune, config.finetune)
    generating = _generating(config, night, tuned, last)
    tested = learned = delivered = measured = None
    if config.canary:
        tested = steps(require, config.canary.model_copy(update={"weights": generating.weights}), "canary")
    else:
        steps.skip("canary", "there is no section canary")
    if config.learn:
        learned = steps(learn, config.learn)
    else:
        steps.skip("learn", "there is no section learn")
    generated = steps(generate, generating)
    if tuned and tuned.weights_revision:
        remember(root, config.run_id, tuned.weights_revision)
    if config.deliver:
        delivered = steps(deliver, _delivering(config.deliver, generating, night))
    if config.evaluate:
        measured = steps(evaluate, config.evaluate)
    else:
        steps.skip("evaluate", "there is no section evaluate")
    maintained = _maintained(config, steps)
    return NightlyReport(
        run_id=config.run_id,
        resumed=night.resumed,
        skipped={s.step: s.why or "" for s in night.steps if s.state == "skipped"},
        prepare=prepared,
        cohorts=grouped,
        finetune=tuned,
        canary=tested,
        learn=learned,
        generate=generated,
        deliver=delivered,
        evaluate=measured,
        maintain=maintained,
        gallery_uri=generated.gallery_uri,
        seconds=0,
    )


def _maintained(config: NightlyConfig, steps: Steps) -> MaintainReport | None:
    """What was done for the tables, or the error: the night has published, and does not fail by it."""
    if not config.maintain.time_s:
        steps.skip("maintain", "maintain.time_s is 0")
        return None
    try:
        return steps(maintain, config.maintain, inline=True)
    except Exception as e:
        log.error("the tables could not be maintained; what is published stays: %s", e)
        return MaintainReport(run_id=config.run_id, errors={"": f"{type(e).__name__}: {e}"})


def _why_not(config: NightlyConfig, root: Root, night: Night, last: Trained | None) -> str | None:
    """Why this night does not fine-tune. The decision holds when the night is resumed."""
    if config.finetune is None:
        return "there is no section finetune"
    step = night.step("finetune")
    if step.state in ("finished", "failed", "stopped", "running"):
        return not_due(root, config.train, None)
    return not_due(root, config.train, last)


def _generating(
    config: NightlyConfig, night: Night, tuned: FinetuneReport | None, last: Trained | None
) -> GenerateConfig:
    """The settings of generate: with tonight's weights or the last accepted ones, and the remaining time and budget."""
    changes: dict[str, Any] = {}
    if tuned and tuned.weights:
        changes["weights"] = tuned.weights
    elif config.finetune and config.train.rule != "never" and last:
        changes["weights"] = last.weights
    if night.deadline:
        changes["deadline"] = night.deadline.isoformat()
    if config.generate.brand_rules_uri and not config.generate.brand_rules_day:
        changes["brand_rules_day"] = night.day
    if config.gpu_hours is not None:
        spent = tuned.seconds * max(1, config.finetune.workers) / 3600 if tuned and config.finetune else 0.0
        changes["gpu_hours"] = max(0.0, config.gpu_hours - spent)
    return config.generate.model_copy(update=changes)


def _delivering(config: DeliverConfig, generating: GenerateConfig, night: Night) -> DeliverConfig:
    """The settings of deliver: creatives are extended with the weights that tonight's were painted with, and its days are those
    of the night, also when that is resumed on another day."""
    changes: dict[str, Any] = {
        "brand_rules_day": generating.brand_rules_day or config.brand_rules_day,
        "variants": config.variants.model_copy(update={"day": config.variants.day or night.day}),
    }
    if config.extend:
        changes["extend"] = config.extend.model_copy(update={"weights": generating.weights})
    return config.model_copy(update=changes)


def _night(root: Root, config: NightlyConfig) -> Night:
    """The state of this night, new or of the night that is resumed; it is written."""
    now = datetime.now(UTC)
    night = state.read(root, config.run_id) if config.resume else None
    if night is None:
        night = Night(run_id=config.run_id, started_at=now)
        for name in SECTIONS:
            if name != "deliver" or config.deliver:
                night.step(name)
    else:
        night.resumed += 1
        for step in night.steps:  # of a driver that was killed
            step.state = "stopped" if step.state == "running" else step.state
    night.state, night.ended_at, night.gpu_hours = "running", None, config.gpu_hours
    night.deadline = deadline.parse_deadline(config.deadline, now.astimezone())
    night.day = night.day or deadline.day_of(config.deadline or config.generate.deadline, now.astimezone())
    night.save(root)
    return night


def _planned(config: NightlyConfig, started: float) -> NightlyReport:
    """What the night would do, from each job's own dry run; nothing is written."""
    root = Root(config.root_uri)
    prepared, grouped = prepare(config.prepare), cohorts(config.cohorts)
    last, skipped = trained(root), {}
    tuned = tested = learned = generated = delivered = measured = None
    first = prepared.samples_version is None or grouped.cohorts_version is None
    if why := _why_not(config, root, Night(run_id=config.run_id, started_at=datetime.now(UTC)), last):
        skipped["finetune"] = why
    elif config.finetune and not first:
        tuned = finetune(config.finetune)
    if not first:
        now = datetime.now(UTC)
        day = deadline.day_of(config.deadline or config.generate.deadline, now.astimezone())
        night = Night(run_id=config.run_id, started_at=now, day=day)
        generating = _generating(config, night, tuned, last)
        if config.canary:
            tested = canary(config.canary.model_copy(update={"weights": generating.weights}))
        learned = config.learn and learn(config.learn)
        generated = generate(generating)
        delivered = config.deliver and deliver(_delivering(config.deliver, generating, night))
        measured = config.evaluate and evaluate(config.evaluate)
    return NightlyReport(
        run_id=config.run_id,
        skipped=skipped,
        prepare=prepared,
        cohorts=grouped,
        finetune=tuned,
        canary=tested,
        learn=learned,
        generate=generated,
        deliver=delivered,
        evaluate=measured,
        gallery_uri=None,
        seconds=round(time.monotonic() - started, 1),
    )
