"""The whole night: prepare, cohorts, finetune, canary, generate, evaluate, in order."""

import logging
import time
from typing import Any

from pydantic import BaseModel, Field, model_validator

from adbooster import canary, cohorts, evaluate, finetune, generate, prepare
from adbooster.canary import CanaryConfig, CanaryReport
from adbooster.cohorts import CohortsConfig, CohortsReport
from adbooster.evaluate import EvaluateConfig, EvaluateReport
from adbooster.finetune import FinetuneConfig, FinetuneReport
from adbooster.generate import GenerateConfig, GenerateReport
from adbooster.objects import Root
from adbooster.prepare import PrepareConfig, PrepareReport
from adbooster.settings import JobConfig, inherited

log = logging.getLogger(__name__)
SECTIONS = ("prepare", "cohorts", "finetune", "canary", "generate", "evaluate")


class NightlyConfig(JobConfig):
    """Settings of `jobs.nightly`: one section a job; root_uri, run_id and dry_run stand once and hold for all."""

    train: bool = True
    """Fine-tune before generating; off: `generate.weights` are used as they are."""
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


class NightlyReport(BaseModel):
    """What the night did, job by job."""

    job: str = "nightly"
    run_id: str
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

    raises CanaryRefused for new weights that fail the canary: nothing is painted and the last night stays live
    """
    started = time.monotonic()
    prepared = prepare.prepare(config.prepare)
    found = cohorts.cohorts(config.cohorts)
    first_dry_run = config.dry_run and (prepared.samples_version is None or found.cohorts_version is None)
    trained = tested = generated = measured = None
    generating = config.generate
    if config.train and config.finetune and not first_dry_run:
        trained = finetune.finetune(config.finetune)
        if trained.weights:
            generating = generating.model_copy(update={"weights": trained.weights})
    if config.canary and not first_dry_run:
        tested = canary.require(config.canary.model_copy(update={"weights": generating.weights}))
    if not first_dry_run:
        generated = generate.generate(generating)
        measured = config.evaluate and evaluate.evaluate(config.evaluate)
    return NightlyReport(
        run_id=config.run_id,
        prepare=prepared,
        cohorts=found,
        finetune=trained,
        canary=tested,
        generate=generated,
        evaluate=measured,
        gallery_uri=generated and generated.gallery_uri,
        seconds=round(time.monotonic() - started, 1),
    )


def check(config: NightlyConfig) -> None:
    """raises ConfigError for what any of the night's jobs would refuse, before the first of them starts"""
    Root(config.root_uri).check_writable()
    prepare.check(config.prepare)
    cohorts.check(config.cohorts)
    if config.train and config.finetune:
        finetune.check(config.finetune)
    if config.canary:
        canary.check(config.canary)
    generate.check(config.generate)
    if config.evaluate:
        evaluate.check(config.evaluate)
