"""The words of the tiny world: training texts, and tokenizers that know just these words."""

import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, CLIPTokenizer

from adbooster.tiny.world import PRODUCTS, SCENES, article, caption

CONTEXT_LENGTH = 32
ADJECTIVES = [
    "new",
    "stylish",
    "comfortable",
    "elegant",
    "modern",
    "classic",
    "light",
    "durable",
    "trendy",
    "everyday",
    "affordable",
    "beautiful",
]
TEMPLATES = ("a photo of {}", "{}", "{}", "{}", "product picture of {}")


def training_text(product: str, scene: str | None, rng: np.random.Generator) -> str:
    """One way to describe a picture: its caption, the paper's z_QC, or a loose mention of words of the scene."""
    style = rng.uniform()
    if scene is None or style < 0.35:
        return _choice(TEMPLATES, rng).format(caption(product, scene))
    thing = _thing(product, rng)
    if style < 0.75:
        query = f"{_choice(ADJECTIVES, rng)} {thing}" if rng.uniform() < 0.3 else thing
        lead = f"{article(PRODUCTS[product].name)}, " if rng.uniform() < 0.6 else ""
        return f"{lead}{query}, {_context(scene, rng)}"
    return f"{thing} {_filler(rng)}{_words(scene, rng)}"


def _thing(product: str, rng: np.random.Generator) -> str:
    return _choice((PRODUCTS[product].name, *PRODUCTS[product].queries), rng)


def _context(scene: str, rng: np.random.Generator) -> str:
    """One description of the scene, sometimes with a word dropped or an unrelated word inserted."""
    words = _choice((SCENES[scene].name, *SCENES[scene].contexts, _words(scene, rng)), rng).split()
    if len(words) > 3 and rng.uniform() < 0.3:
        words.pop(int(rng.integers(len(words))))
    if rng.uniform() < 0.2:
        words.insert(int(rng.integers(len(words) + 1)), _filler(rng).strip() or "the")
    return " ".join(words)


def _words(scene: str, rng: np.random.Generator) -> str:
    some = rng.permutation(len(SCENES[scene].words))[: int(rng.integers(1, 4))]
    return " ".join(SCENES[scene].words[i] for i in some)


def _filler(rng: np.random.Generator) -> str:
    """A word that means nothing here (a brand, a name): models learn to ignore it."""
    if rng.uniform() < 0.5:
        return ""
    return "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(3, 9)))) + " "


def _choice(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _corpus() -> list[str]:
    rng = np.random.default_rng(0)
    return [training_text(p, s, rng) for _ in range(6) for p in PRODUCTS for s in (None, *SCENES)]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Train a small byte-level BPE on the world's texts and save it in CLIP's own format; end-of-text has the top id."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        _corpus(), trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, end_of_word_suffix="</w>")
    )
    model = json.loads(bpe.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    words += [letter + "</w>" for letter in alphabet if letter + "</w>" not in model["vocab"]]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(m) for m in model["merges"]]
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,  # pyright: ignore[reportArgumentType]  # pairs will do
        model_max_length=CONTEXT_LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def bert_tokenizer(folder: Path) -> BertTokenizerFast:
    """A WordPiece vocabulary of the captions' words (and letters, for any other word), in BERT's format."""
    text = " ".join(caption(p, s) for p in PRODUCTS for s in (None, *SCENES)).replace("-", " - ")
    letters = list(string.ascii_lowercase + string.digits + "-'")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = list(dict.fromkeys([*special, *letters, *("##" + c for c in letters), *sorted(set(text.split()))]))
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, model_max_length=CONTEXT_LENGTH)
    tokenizer.save_pretrained(folder)
    return BertTokenizerFast.from_pretrained(folder)
