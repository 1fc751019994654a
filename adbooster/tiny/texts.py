"""The words of the tiny world: training texts, and tokenizers that know just these words."""

import json
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, CLIPTokenizer, PreTrainedTokenizerFast

from adbooster.prompts.language_model import SceneRequest, parse
from adbooster.tiny.world import PRODUCTS, SCENES, SEEN, article, caption

CONTEXT_LENGTH = 32
WRITER_LENGTH = 512
LONGEST_SCENE = 20  # words
BRANDS = ("Dune",)  # of the catalog: a scene of dunes would name it
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
LINKS = (
    "and",
    "with",
    "in the",
    "on a",
    "by the",
    "at the",
    "of",
    "for the",
    "around the",
    "among",
    "to a",
    "over the",
)
OPENINGS = (
    "",
    "",
    "a",
    "the",
    "my",
    "our next",
    "a day of",
    "a weekend with",
    "an evening with",
    "time for",
    "dreaming of",
)
OPENINGS = (
    *OPENINGS,
    "watching",
    "playing",
    "looking for",
    "a long trip with",
    "a photo from",
    "training with",
    "a new",
)
CHAT = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] + '\n' }}{% endif %}{% endfor %}"
PAD, END = "<pad>", "<end>"


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


def written_example(rng: np.random.Generator) -> tuple[str, str]:
    """What a language model is asked for a product and a cohort of this world, and what it should answer.

    The situation is told in words of one scene, among words that mean nothing; what the user looks for says nothing of
    it. The answer names the scene as captions do, and then in the words nearest to the situation's.
    """
    scene, product = _choice(list(SCENES), rng), _choice(SEEN, rng)
    thing = _thing(product if rng.uniform() < 0.5 else _choice(SEEN, rng), rng)
    query = _choice((thing, article(thing), f"{_choice(ADJECTIVES, rng)} {thing}"), rng)
    situation = _situation(scene, rng)
    request = SceneRequest(
        product=article(PRODUCTS[product].name) if rng.uniform() < 0.7 else PRODUCTS[product].name,
        category=PRODUCTS[product].category if rng.uniform() < 0.8 else "",
        brand="",
        query=query if rng.uniform() < 0.9 else "",
        context=situation,
        palette=tuple(rng.choice(("teal", "sand", "red", "white", "navy"), 2)) if rng.uniform() < 0.1 else (),
    )
    answer = {"scene": f"{SCENES[scene].name}, {_nearest(scene, situation)}", "negative": ""}
    return request.message(), json.dumps(answer)


def _situation(scene: str, rng: np.random.Generator) -> str:
    style = rng.uniform()
    if style < 0.3:
        return _context(scene, rng)
    if style < 0.4:
        return f"{_context(scene, rng)} {_choice(LINKS, rng)} {_choice(_clues(scene), rng)}"
    words = [_choice(_clues(scene), rng) for _ in range(int(rng.integers(1, 4)))]
    said = [_choice(OPENINGS, rng), words[0]]
    for word in words[1:]:
        said += [_choice(LINKS, rng) if rng.uniform() < 0.8 else "", word]
    if rng.uniform() < 0.5:
        said += [_choice(LINKS, rng), _choice(_shared_words(), rng)]
    if rng.uniform() < 0.3:
        said.insert(int(rng.integers(len(said) + 1)), _choice(ADJECTIVES, rng))
    return " ".join(word for word in said if word)


def _tokens(text: str) -> list[str]:
    return [word for word in text.replace("'", " ").split() if len(word) > 2]


@lru_cache
def _scenes_of_words() -> dict[str, Counter[str]]:
    """By word of the scenes' texts: the scenes that it is said of."""
    found: dict[str, Counter[str]] = {}
    for key, scene in SCENES.items():
        for word in _tokens(" ".join((scene.name, *scene.contexts, *scene.words))):
            found.setdefault(word, Counter())[key] += 1
    return found


@lru_cache
def _clues(scene: str) -> tuple[str, ...]:
    """Words that are said of one scene alone; its own list of words twice, as contexts hold words of little meaning."""
    alone = [w for w, scenes in _scenes_of_words().items() if list(scenes) == [scene]]
    return (*alone, *SCENES[scene].words, *SCENES[scene].words)


@lru_cache
def _shared_words() -> tuple[str, ...]:
    """Words of several scenes, and some of none."""
    return (
        *(w for w, scenes in _scenes_of_words().items() if len(scenes) > 1),
        "trip",
        "people",
        "days",
        "home",
        "street",
    )


def _nearest(scene: str, situation: str) -> str:
    """The scene's context that shares most words with a situation, among those that may be said in a scene."""
    said = set(_tokens(situation))
    return max(_sayable(scene), key=lambda context: len(said & set(_tokens(context))))


@lru_cache
def _sayable(scene: str) -> tuple[str, ...]:
    """Contexts that the rules for scenes let pass for products of every brand."""

    def passes(context: str) -> bool:
        try:
            for brand in BRANDS:
                parse(json.dumps({"scene": context}), SceneRequest("", "", brand, "", ""), LONGEST_SCENE)
        except ValueError:
            return False
        return True

    return tuple(filter(passes, SCENES[scene].contexts))


def writer_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of what the tiny language model is asked and answers; its chat template leaves the instructions
    out, which it knows by heart."""
    rng = np.random.default_rng(30)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, special_tokens=[PAD, END])
    bpe.train_from_iterator((text for _ in range(4000) for text in written_example(rng)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, padding_side="left", model_max_length=WRITER_LENGTH
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    return tokenizer
