"""The whole night: prepare, cohorts, finetune, generate, in order."""

import logging
import time
from typing import Any

from pydantic import BaseModel, Field, model_validator

from adbooster import cohorts, finetune, generate, prepare
from adbooster.cohorts import CohortsConfig, CohortsReport
from adbooster.finetune import FinetuneConfig, FinetuneReport
from adbooster.generate import GenerateConfig, GenerateReport
from adbooster.objects import Root
from adbooster.prepare import PrepareConfig, PrepareReport
from adbooster.settings import JobConfig

log = logging.getLogger(__name__)
SECTIONS = ("prepare", "cohorts", "finetune", "generate")


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
    generate: GenerateConfig
    """Samples x cohorts x weights to creatives."""

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Any) -> Any:
        """What is said once for the night holds in every section."""
        if not isinstance(values, dict):
            return values
        shared = {k: values[k] for k in ("root_uri", "run_id", "dry_run") if k in values}
        return values | {s: values[s] | shared for s in SECTIONS if isinstance(values.get(s), dict)}


class NightlyReport(BaseModel):
    """What the night did, job by job."""

    job: str = "nightly"
    run_id: str
    prepare: PrepareReport
    cohorts: CohortsReport
    finetune: FinetuneReport | None
    generate: GenerateReport | None
    gallery_uri: str | None
    seconds: float = Field(ge=0)


def nightly(config: NightlyConfig) -> NightlyReport:
    """Run the jobs in order; each meets the next only in the tables, and an error of one stops the night."""
    started = time.monotonic()
    prepared = prepare.prepare(config.prepare)
    found = cohorts.cohorts(config.cohorts)
    first_dry_run = config.dry_run and (prepared.samples_version is None or found.cohorts_version is None)
    trained = generated = None
    generating = config.generate
    if config.train and config.finetune and not first_dry_run:
        trained = finetune.finetune(config.finetune)
        if trained.weights:
            generating = generating.model_copy(update={"weights": trained.weights})
    if not first_dry_run:
        generated = generate.generate(generating)
    return NightlyReport(
        run_id=config.run_id,
        prepare=prepared,
        cohorts=found,
        finetune=trained,
        generate=generated,
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
    generate.check(config.generate)
