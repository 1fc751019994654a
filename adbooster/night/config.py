"""Settings and report of `jobs.nightly`."""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from adbooster.canary.config import CanaryConfig, CanaryReport
from adbooster.cohorts.config import CohortsConfig, CohortsReport
from adbooster.contracts.settings import Config, JobConfig, completed
from adbooster.deliver.config import DeliverConfig, DeliverReport
from adbooster.evaluate.config import EvaluateConfig, EvaluateReport
from adbooster.finetune.config import FinetuneConfig, FinetuneReport
from adbooster.generate.config import GenerateConfig, GenerateReport
from adbooster.learn.config import LearnConfig, LearnReport
from adbooster.prepare.config import PrepareConfig, PrepareReport
from adbooster.storage.maintenance import MaintainConfig, MaintainReport


class Due(Config):
    """When a night fine-tunes. `true` in a file means the rule always, `false` never."""

    rule: Literal["always", "never", "days", "changed"] = "always"
    """always: every night (the same data and settings are trained once); never: `generate.weights` are used as they are;
    days: when the last training is `days` old; changed: when `share` of the scenes have changed since."""
    days: float = Field(default=7, ge=0)
    """For the rule days."""
    share: float = Field(default=0.1, ge=0, le=1)
    """For the rule changed: scenes that are new, changed or gone, as a share of those trained on."""


SECTIONS = ("prepare", "cohorts", "finetune", "canary", "learn", "generate", "deliver", "evaluate", "maintain")


def _due(value: Any) -> Any:
    """`train: true` and `train: false` in a file, or as a flag."""
    words = {True: "always", "true": "always", False: "never", "false": "never"}
    return {"rule": words[value]} if isinstance(value, bool | str) and value in words else value


class NightlyConfig(JobConfig):
    """Settings of `jobs.nightly`: one section a job; root_uri, catalog, run_id and dry_run are given once and hold for all."""

    resume: bool = False
    """Go on with the night of this run_id: steps that finished with the same settings are not run again."""
    train: Annotated[Due, BeforeValidator(_due)] = Due()
    """When to fine-tune before generating."""
    deadline: str = ""
    """When painting stops, from the start of this night: 06:30 (this machine's time), 06:30 Europe/Berlin, 5h."""
    gpu_hours: float | None = Field(default=None, ge=0)
    """GPU-hours of fine-tuning and painting together after which painting stops."""
    isolate: Literal["auto", "process", "inline"] = "auto"
    """process: each step is a process of its own, so that what it held on the cluster is free when it ends; inline: one
    process for all; auto: process on a cluster (RAY_ADDRESS), inline on a machine alone."""
    lock_ttl_s: float = Field(default=120, gt=0)
    """Seconds without a renewal after which another night may take over this one's lock."""
    prepare: PrepareConfig
    """Feed to samples."""
    cohorts: CohortsConfig
    """Cohort file to cohorts."""
    finetune: FinetuneConfig | None = None
    """Samples to weights."""
    canary: CanaryConfig | None = None
    """New weights against the live ones, before anything is painted with them; weights that fail stop the night."""
    learn: LearnConfig | None = None
    """Outcomes to what is shown and replaced, before anything is painted."""
    generate: GenerateConfig
    """Samples x cohorts x weights to creatives."""
    deliver: DeliverConfig | None = None
    """Creatives to the ad channels."""
    evaluate: EvaluateConfig | None = None
    """What the creatives are worth."""
    maintain: MaintainConfig
    """Small files of tables merged and logs shortened once all is published; an error there does not fail the night."""

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, values: Any) -> Any:
        """Settings given once for the night hold in every section."""
        if not isinstance(values, dict):
            return values
        values = {"maintain": {}} | values
        names = ("root_uri", "catalog", "run_id", "dry_run", "signing_key_env")
        shared = {"catalog": ""} | {k: values[k] for k in names if k in values}
        given = {s: values[s] for s in SECTIONS if isinstance(values.get(s), dict)}
        for section, config_class in (
            ("canary", CanaryConfig),
            ("learn", LearnConfig),
            ("deliver", DeliverConfig),
            ("evaluate", EvaluateConfig),
        ):
            if section in given:
                given[section] = completed(config_class, given[section], values)
        if "canary" in given and "generate" in given:  # replaced by what the night trains
            given["canary"] = {"weights": given["generate"].get("weights")} | given["canary"]
        return values | {s: settings | shared for s, settings in given.items()}

    @property
    def isolated(self) -> bool:
        return self.isolate == "process" or (self.isolate == "auto" and bool(os.environ.get("RAY_ADDRESS")))

    @property
    def needs_ray(self) -> bool:
        """Whether this process itself works on Ray: steps in processes of their own connect to a cluster that is there."""
        return self.dry_run or not (self.isolated and os.environ.get("RAY_ADDRESS"))


class NightlyReport(BaseModel):
    """What the night did, job by job."""

    job: str = "nightly"
    run_id: str
    resumed: int = 0
    """Times the night was resumed."""
    skipped: dict[str, str] = {}
    """Steps that were not due, and why."""
    prepare: PrepareReport
    cohorts: CohortsReport
    finetune: FinetuneReport | None
    canary: CanaryReport | None = None
    learn: LearnReport | None = None
    generate: GenerateReport | None
    deliver: DeliverReport | None = None
    evaluate: EvaluateReport | None = None
    maintain: MaintainReport | None = None
    gallery_uri: str | None
    seconds: float = Field(ge=0)
