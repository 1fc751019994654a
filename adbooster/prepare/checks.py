"""Checks of the settings that run before a cluster is used."""

from adbooster.catalog import reader
from adbooster.contracts.errors import ConfigError
from adbooster.models.files import caption_input
from adbooster.prepare import addresses
from adbooster.prepare.config import PrepareConfig
from adbooster.storage.mask_models import check_mask_model
from adbooster.storage.model_store import local_copy, refuse_pickles
from adbooster.storage.objects import Root


def check(config: PrepareConfig) -> None:
    """raises ConfigError for anything that can be known before an actor starts: models, feed, root"""
    config.fetch_credentials.client_options()
    stores = addresses.fences(config.allowed_stores, config.feed_uri)
    if config.fetch_credentials.key_env and (other := [store.uri for store in stores if store.scheme != "s3"]):
        raise ConfigError(f"fetch_credentials are for s3://, and {other[0]} is another storage; leave one of them out")
    refuse_pickles(local_copy(config.caption_model))
    caption_input(local_copy(config.caption_model))
    check_mask_model(config.mask_model, config.mask_network, config.device)
    reader.check(config.feed_uri, config.feed_format, config.columns)
    if not config.dry_run:
        Root(config.root_uri).check_writable()
