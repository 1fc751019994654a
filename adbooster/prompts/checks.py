"""Checks of the settings that run before a cluster is used."""

import importlib.util

from adbooster.contracts.errors import ConfigError
from adbooster.models.files import check_language_model
from adbooster.prompts import language_model
from adbooster.prompts.config import LanguageModel, Prompting
from adbooster.prompts.token_window import token_window
from adbooster.storage.model_store import local_copy, refuse_pickles


def check(prompting: Prompting) -> None:
    """raises ConfigError for a tokenizer that is not there and for a language model that cannot work"""
    if prompting.tokenizer:
        token_window(prompting, None)
    if prompting.style == "llm" and prompting.llm.local_model:
        _check_local(prompting.llm)
    elif prompting.style == "llm":
        language_model.check(prompting.llm)


def _check_local(llm: LanguageModel) -> None:
    if not llm.by_vllm:
        folder = local_copy(llm.local_model)
        check_language_model(folder)
        refuse_pickles(folder)
    elif importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "llm.engine vllm needs vLLM on every node (pip install 'ray[llm]'), which is not installed here; "
            "set it to transformers, or give llm.base_url and llm.model of an endpoint"
        )
