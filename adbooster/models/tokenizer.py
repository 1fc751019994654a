"""How many tokens a text encoder makes of a word."""

from collections.abc import Callable
from pathlib import Path

from adbooster.contracts.errors import ConfigError


def token_counter(path: Path) -> Callable[[str], int]:
    """Tokens of a word, without marks of start and end, by the tokenizer in a folder.

    raises ConfigError if the folder holds none that transformers can load
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} holds no tokenizer that transformers can load: {e}") from e
    return lambda word: len(tokenizer(word, add_special_tokens=False)["input_ids"])
