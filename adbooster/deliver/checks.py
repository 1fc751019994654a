"""Checks of the settings that run before a cluster is used."""

from pydantic import ValidationError

from adbooster.channels.feeds import FeedSettings
from adbooster.channels.presets import load_channels
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.redaction import redact
from adbooster.deliver.config import DeliverConfig
from adbooster.deliver.sources import check_catalog
from adbooster.painting.brand_rules import read_brand_rules
from adbooster.painting.checks import check_models
from adbooster.painting.targeting import read_targeting
from adbooster.provenance.credentials import check_signing
from adbooster.storage.objects import Root

OBJECT = len("/objects/ab/") + 64 + len(".webp")


def check(config: DeliverConfig) -> None:
    """raises ConfigError for what can be known before a picture is opened: channels, addresses, limits, who signs, the root"""
    channels = load_channels(config.channels)
    for channel in channels:
        if (length := len(config.public_base_url) + OBJECT) > channel.limits.url:
            raise ConfigError(
                f"public_base_url makes addresses of {length} characters, {channel.name} takes {channel.limits.url}"
            )
        try:
            FeedSettings(channel=channel, public_base_url=config.public_base_url, feeds=config.feeds)
        except ValidationError as e:
            raise ConfigError(str(e.errors()[0]["msg"]).removeprefix("Value error, ")) from e
    if config.encoding.max_kb is not None and config.encoding.max_kb < 1:
        raise ConfigError(
            f"encoding.max_kb {config.encoding.max_kb:g} is less than any picture has; 50 to 300 are usual"
        )
    for name, address in (("public_base_url", config.public_base_url), ("feeds.catalog_uri", config.feeds.catalog_uri)):
        if redact(address) != address:
            raise ConfigError(
                f"{name} {redact(address)} holds a secret; settings are stored without it and `adbooster withdraw` could not "
                "use it: give an address without keys, or a path"
            )
    if config.signing:
        check_signing(config.signing)
    if config.extend:
        check_models(config.extend.painting(config.root_uri, config.run_id))
    if config.holdout.share:
        _check_pairs(config)
    if config.feeds.catalog_uri:
        check_catalog(config.feeds.catalog_uri, channels)
    if not config.dry_run:
        Root(config.root_uri).check_writable()


def _check_pairs(config: DeliverConfig) -> None:
    """raises ConfigError where it cannot be told which pairs there are to be held out of"""
    rule = config.targeting.rule
    if rule == "top_n" and not config.rank_model:
        raise ConfigError("holdout with targeting.rule top_n needs rank_model, the one that generate has")
    if rule == "table" and not config.targeting.table_uri:
        raise ConfigError("targeting.rule table needs targeting.table_uri")
    if rule == "table":
        read_targeting(config.targeting.table_uri, config.signing_key_env)
    if config.brand_rules_uri:
        read_brand_rules(config.brand_rules_uri, config.signing_key_env)
