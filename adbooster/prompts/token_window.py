"""The text encoder's window: how many tokens a text has, and where it is cut so that the model reads all of it."""

import re
from functools import lru_cache
from pathlib import Path

from adbooster.models.files import token_counter
from adbooster.prompts.config import Prompting
from adbooster.storage.model_store import local_copy

_PIECES = re.compile(r"[a-z]{1,4}|[0-9]|[^\sa-z0-9]", re.IGNORECASE | re.ASCII)


class Window:
    """Cuts texts to `tokens`, the two that mark start and end included.

    tokenizer_path  a folder with CLIP's tokenizer (`weights/tokenizer`); None: a token for each four letters, each
                    digit and each byte of anything else, which is more than CLIP's tokenizer makes of common words
    raises          ConfigError if the folder holds no tokenizer
    """

    def __init__(self, tokens: int, tokenizer_path: Path | None = None):
        self.room = tokens - 2
        count = _estimate if tokenizer_path is None else token_counter(tokenizer_path)
        # CLIP's tokens never reach over a space, so a text has as many as its words have: each word is counted once.
        self._of_word = lru_cache(1_000_000)(count)

    def count(self, text: str) -> int:
        """Tokens of a text without the marks of start and end."""
        return sum(map(self._of_word, text.split()))

    def cut(self, text: str) -> tuple[str, str]:
        """(what fits, the words that do not); the last words are cut first, and no word is split."""
        if len(text) <= self.room and text.isascii():  # a token has at least one byte
            return text, ""
        words, used = text.split(), 0
        for i, word in enumerate(words):
            used += self._of_word(word)
            if used > self.room:
                return " ".join(words[:i]).rstrip(",;: "), " ".join(words[i:])
        return text, ""


def _estimate(word: str) -> int:
    return sum(len(piece.encode()) if not piece.isascii() else 1 for piece in _PIECES.findall(word))


def token_window(prompting: Prompting, tokenizer_path: Path | None) -> Window:
    """The window of the encoder, with its own tokenizer if the settings name one, else that of the weights."""
    return Window(prompting.window_tokens, local_copy(prompting.tokenizer) if prompting.tokenizer else tokenizer_path)
