"""The whole night: prepare, cohorts, finetune when due, canary, generate, evaluate; one at a time, resumable at the step that failed."""

import logging
import os
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from adbooster import allowance, canary, cohorts, evaluate, finetune, generate, nights, prepare
from adbooster.canary import CanaryConfig, CanaryReport
from adbooster.cohorts import CohortsConfig, CohortsReport
from adbooster.due import Due, Trained, not_due, remember, trained
from adbooster.errors import ConfigError
from adbooster.evaluate import EvaluateConfig, EvaluateReport
from adbooster.finetune import FinetuneConfig, FinetuneReport
from adbooster.generate import GenerateConfig, GenerateReport
from adbooster.lock import NightLock
from adbooster.nights import Night
from adbooster.objects import Root
from adbooster.prepare import PrepareConfig, PrepareReport
from adbooster.settings import JobConfig, inherited
from adbooster.steps import Steps

log = logging.getLogger(__name__)
SECTIONS = ("prepare", "cohorts", "finetune", "canary", "generate", "evaluate")


def _due(value: Any) -> Any:
    """`train: true` and `train: false` in a file, or as a flag."""
    words = {True: "always", "true": "always", False: "never", "false": "never"}
    return {"rule": words[value]} if isinstance(value, bool | str) and value in words else value


class NightlyConfig(JobConfig):
    """Settings of `jobs.nightly`: one section a job; root_uri, run_id and dry_run stand once and hold for all."""

    resume: bool = False
    """Go on with the night of this run_id: steps that finished with the same settings are not run again."""
    train: Annotated[Due, BeforeValidator(_due)] = Due()
    """When to fine-tune before generating."""
    deadline: str = ""
    """When painting stops, from the start of this night: 06:30 (this machine's time), 06:30 Europe/Berlin, 5h."""
    gpu_hours: float | None = Field(None, ge=0)
    """GPU-hours of fine-tuning and painting together after which painting stops."""
    isolate: Literal["auto", "process", "inline"] = "auto"
    """process: each step is a process of its own, so that what it held on the cluster is free when it ends; inline: one
    process for all; auto: process on a cluster (RAY_ADDRESS), inline on a machine alone."""
    lock_ttl_s: float = Field(120, gt=0)
    """Seconds without a sign of life after which another night may take this one's place."""
    prepare: PrepareConfig
    """Feed to samples."""
    cohorts: CohortsConfig
    """Cohort file to cohorts."""
    finetune: FinetuneConfig | None = None
    """Samples to weights."""
    canary: CanaryConfig | None = None
    """New weights against the live ones, before anything is painted with them; weights that fail stop the night."""
    generate: GenerateConfig
    """Samples x cohorts x weights to creatives."""
    evaluate: EvaluateConfig | None = None
    """What the creatives are worth."""

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Any) -> Any:
        """What is said once for the night holds in every section."""
        if not isinstance(values, dict):
            return values
        shared = {k: values[k] for k in ("root_uri", "run_id", "dry_run") if k in values}
        given = {s: values[s] for s in SECTIONS if isinstance(values.get(s), dict)}
        for section, config_class in (("canary", CanaryConfig), ("evaluate", EvaluateConfig)):
            if section in given:
                given[section] = inherited(config_class, values) | given[section]
        if "canary" in given and "generate" in given:  # replaced by what the night trains
            given["canary"] = {"weights": given["generate"].get("weights")} | given["canary"]
        return values | {s: settings | shared for s, settings in given.items()}

    @property
    def isolated(self) -> bool:
        return self.isolate == "process" or (self.isolate == "auto" and bool(os.environ.get("RAY_ADDRESS")))


class NightlyReport(BaseModel):
    """What the night did, job by job."""

    job: str = "nightly"
    run_id: str
    resumed: int = 0
    """Times the night was taken up again."""
    skipped: dict[str, str] = {}
    """Steps that were not due, and why."""
    prepare: PrepareReport
    cohorts: CohortsReport
    finetune: FinetuneReport | None
    canary: CanaryReport | None = None
    generate: GenerateReport | None
    evaluate: EvaluateReport | None = None
    gallery_uri: str | None
    seconds: float = Field(ge=0)


def nightly(config: NightlyConfig) -> NightlyReport:
    """Run the jobs in order; each meets the next only in the tables, and an error of one stops the night.

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
    prepared = steps(prepare.prepare, config.prepare)
    found = steps(cohorts.cohorts, config.cohorts)
    last, tuned = trained(root), None
    why = _why_not(config, root, night, last)
    if why:
        steps.skip("finetune", why)
    elif config.finetune:
        tuned = steps(finetune.finetune, config.finetune)
    generating = _generating(config, night, tuned, last)
    tested = measured = None
    if config.canary:
        tested = steps(canary.require, config.canary.model_copy(update={"weights": generating.weights}), "canary")
    else:
        steps.skip("canary", "there is no section canary")
    generated = steps(generate.generate, generating)
    if tuned and tuned.weights_revision:
        remember(root, config.run_id, tuned.weights_revision)
    if config.evaluate:
        measured = steps(evaluate.evaluate, config.evaluate)
    else:
        steps.skip("evaluate", "there is no section evaluate")
    return NightlyReport(
        run_id=config.run_id,
        resumed=night.resumed,
        skipped={s.step: s.why or "" for s in night.steps if s.state == "skipped"},
        prepare=prepared,
        cohorts=found,
        finetune=tuned,
        canary=tested,
        generate=generated,
        evaluate=measured,
        gallery_uri=generated.gallery_uri,
        seconds=0,
    )


def _why_not(config: NightlyConfig, root: Root, night: Night, last: Trained | None) -> str | None:
    """Why this night does not fine-tune. What it decided once holds when it is resumed."""
    if config.finetune is None:
        return "there is no section finetune"
    step = night.step("finetune")
    if step.state in ("finished", "failed", "stopped", "running"):
        return not_due(root, config.train, None)
    return not_due(root, config.train, last)


def _generating(
    config: NightlyConfig, night: Night, tuned: FinetuneReport | None, last: Trained | None
) -> GenerateConfig:
    """The settings of generate: with tonight's weights or the last accepted, what is left of the time and the budget."""
    changes: dict[str, Any] = {}
    if tuned and tuned.weights:
        changes["weights"] = tuned.weights
    elif config.finetune and config.train.rule != "never" and last:
        changes["weights"] = last.weights
    if night.deadline:
        changes["deadline"] = night.deadline.isoformat()
    if config.gpu_hours is not None:
        spent = tuned.seconds * max(1, config.finetune.workers) / 3600 if tuned and config.finetune else 0.0
        changes["gpu_hours"] = max(0.0, config.gpu_hours - spent)
    return config.generate.model_copy(update=changes)


def _night(root: Root, config: NightlyConfig) -> Night:
    """This night's state, written; a resumed night's, from where it is."""
    now = datetime.now(UTC)
    night = nights.read(root, config.run_id) if config.resume else None
    if night is None:
        night = Night(run_id=config.run_id, started_at=now)
        for name in SECTIONS:
            night.step(name)
    else:
        night.resumed += 1
        for step in night.steps:  # of a driver that was killed
            step.state = "stopped" if step.state == "running" else step.state
    night.state, night.ended_at, night.gpu_hours = "running", None, config.gpu_hours
    night.deadline = allowance.until(config.deadline, now.astimezone())
    night.save(root)
    return night


def _planned(config: NightlyConfig, started: float) -> NightlyReport:
    """What the night would do, as each job's own dry run tells it; nothing is written."""
    root = Root(config.root_uri)
    prepared, found = prepare.prepare(config.prepare), cohorts.cohorts(config.cohorts)
    last, skipped = trained(root), {}
    tuned = tested = generated = measured = None
    first = prepared.samples_version is None or found.cohorts_version is None
    if why := _why_not(config, root, Night(run_id=config.run_id, started_at=datetime.now(UTC)), last):
        skipped["finetune"] = why
    elif config.finetune and not first:
        tuned = finetune.finetune(config.finetune)
    if not first:
        night = Night(run_id=config.run_id, started_at=datetime.now(UTC))
        generating = _generating(config, night, tuned, last)
        if config.canary:
            tested = canary.canary(config.canary.model_copy(update={"weights": generating.weights}))
        generated = generate.generate(generating)
        measured = config.evaluate and evaluate.evaluate(config.evaluate)
    return NightlyReport(
        run_id=config.run_id,
        skipped=skipped,
        prepare=prepared,
        cohorts=found,
        finetune=tuned,
        canary=tested,
        generate=generated,
        evaluate=measured,
        gallery_uri=None,
        seconds=round(time.monotonic() - started, 1),
    )


def check(config: NightlyConfig) -> None:
    """raises ConfigError for what any of the night's jobs would refuse, before the first of them starts"""
    root = Root(config.root_uri)
    root.check_writable()
    allowance.until(config.deadline, datetime.now().astimezone())
    if config.resume and nights.read(root, config.run_id) is None:
        unfinished = [n.run_id for n in nights.every(root) if n.state != "finished"]
        raise ConfigError(
            f"there is no night {config.run_id} below {root.uri} to resume; give --run-id, one of: "
            f"{', '.join(unfinished[:5]) or '(every night is finished)'}"
        )
    prepare.check(config.prepare)
    cohorts.check(config.cohorts)
    if config.train.rule != "never" and config.finetune:
        finetune.check(config.finetune)
    if config.canary:
        canary.check(config.canary)
    generate.check(config.generate)
    if config.evaluate:
        evaluate.check(config.evaluate)


def needs_ray(config: NightlyConfig) -> bool:
    """Whether this process itself works on Ray: steps in processes of their own connect to a cluster that is there."""
    return config.dry_run or not (config.isolated and os.environ.get("RAY_ADDRESS"))
