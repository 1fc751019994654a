"""Checks of the settings that run before the first step begins."""

from datetime import datetime

from adbooster.canary.checks import check as check_canary
from adbooster.cohorts.checks import check as check_cohorts
from adbooster.contracts import deadline
from adbooster.contracts.errors import ConfigError
from adbooster.deliver.checks import check as check_deliver
from adbooster.evaluate.checks import check as check_evaluate
from adbooster.finetune.checks import check as check_finetune
from adbooster.generate.checks import check as check_generate
from adbooster.learn.checks import check as check_learn
from adbooster.night import state
from adbooster.night.config import NightlyConfig
from adbooster.prepare.checks import check as check_prepare
from adbooster.storage.objects import Root


def check(config: NightlyConfig) -> None:
    """raises ConfigError for what any of the night's jobs would refuse, before the first of them starts"""
    root = Root(config.root_uri)
    root.check_writable()
    deadline.parse_deadline(config.deadline, datetime.now().astimezone())
    if config.resume and state.read(root, config.run_id) is None:
        unfinished = [n.run_id for n in state.every(root) if n.state != "finished"]
        raise ConfigError(
            f"there is no night {config.run_id} below {root.uri} to resume; give --run-id, one of: "
            f"{', '.join(unfinished[:5]) or '(every night is finished)'}"
        )
    check_prepare(config.prepare)
    check_cohorts(config.cohorts)
    if config.train.rule != "never" and config.finetune:
        check_finetune(config.finetune)
    if config.canary:
        check_canary(config.canary)
    if config.learn:
        check_learn(config.learn)
    check_generate(config.generate)
    if config.deliver:
        check_deliver(config.deliver)
    if config.evaluate:
        check_evaluate(config.evaluate)
