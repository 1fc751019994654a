"""Checks of the settings that run before a cluster is used."""

from adbooster.prompts import language_model, local_model
from adbooster.prompts.config import Prompting
from adbooster.prompts.token_window import token_window


def check(prompting: Prompting) -> None:
    """raises ConfigError for a tokenizer that is not there and for a language model that cannot work"""
    if prompting.tokenizer:
        token_window(prompting, None)
    if prompting.style == "llm" and prompting.llm.local_model:
        local_model.check(prompting.llm.local_model)
    elif prompting.style == "llm":
        language_model.check(prompting.llm)
