"""The prompts of a night: one for each pair of a product and a cohort, by template or by a language model."""

import logging
from collections import Counter
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, field_validator

from adbooster import llm, llm_local, schema, tables
from adbooster.errors import ConfigError, PublishConflict
from adbooster.llm import Answers, Ask, LanguageModel, Scene
from adbooster.objects import Root, local_copy
from adbooster.prompts import NEGATIVE_PROMPT, clean, prompt_qc
from adbooster.settings import Config, Uri
from adbooster.window import Window

log = logging.getLogger(__name__)


class Brand(Config):
    """What holds for one brand's products."""

    negative: str = Field("", max_length=300)
    """What must not be painted, besides what holds for all."""
    palette: list[str] = Field([], max_length=8)
    """Colour words that the scene should use."""


class Prompting(Config):
    """How a product and a cohort become text. What it yields names the request; these settings themselves do not."""

    style: Literal["qc", "llm"] = "qc"
    """qc: the paper's z_QC, product, query and context by `template`; llm: its z_P, a scene by a language model."""
    template: str = "{product}, {query}, {context}"
    """z_QC as a template of product, query, context and palette; what stands last is cut first."""
    negative_prompt: str = Field(NEGATIVE_PROMPT, max_length=1000)
    """What must not be painted."""
    brands: dict[str, Brand] = Field({})
    """Additions by brand, as the feed names it (case does not matter)."""
    window_tokens: int = Field(77, ge=8)
    """The text encoder's window, start and end included; CLIP reads 77."""
    tokenizer: Uri = ""
    """A folder with the text encoder's tokenizer; empty: that of the weights, or an estimate where there is none."""
    llm: LanguageModel = LanguageModel()
    """The language model of style llm."""

    @field_validator("template")
    @classmethod
    def _known_fields(cls, template: str) -> str:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        unknown = fields - {"product", "query", "context", "palette"}
        if unknown or "product" not in fields:
            raise ValueError(
                f"should hold {{product}} and may hold {{query}}, {{context}} and {{palette}}, not {unknown}"
            )
        return template


class PromptFigures(BaseModel):
    """Where the prompts of a run came from; counts are of pairs unless said otherwise."""

    style: str = "qc"
    pairs: int = 0
    prompts: int = 0
    """Distinct prompts."""
    cached: int = 0
    """Distinct scenes of the language model taken from tables/prompts."""
    called: int = 0
    """Distinct scenes asked for in this run."""
    pending: int = 0
    """Distinct scenes that a dry run would ask for."""
    failed: dict[str, int] = {}
    """Distinct scenes without an answer, by reason."""
    refused: dict[str, int] = {}
    """Distinct scenes whose answer broke a rule, by reason."""
    over_budget: int = 0
    """Distinct scenes not asked for because of max_calls."""
    fallbacks: int = 0
    """Pairs of style llm that are painted from z_QC."""
    cut: int = 0
    """Distinct prompts longer than the window."""
    cut_example: str = ""
    """One of them, with what was cut in brackets."""
    negatives_cut: int = 0
    """Distinct negative prompts longer than the window."""


def write_prompts(
    root: Root, pairs: pa.Table, prompting: Prompting, dry_run: bool = False, tokenizer_path: Path | None = None
) -> tuple[pa.Table, PromptFigures]:
    """`pairs` (schema.PAIRS) in their order with prompt, negative_prompt and prompt_style (schema.PROMPTED).

    prompt_style is qc; llm; qc_fallback, a pair of style llm that no usable scene came for; or llm_pending in a dry
    run, which calls nobody and writes nothing.
    raises ConfigError with `llm.fallback` off if a scene is missing
    """
    writer = _Writer(prompting)
    rows = pairs.select(["words", "category", "brand", "query", "context", "negative"]).to_pylist()
    figures = PromptFigures(style=prompting.style, pairs=len(rows))
    scenes: dict[str, Scene] = {}
    keys: list[str] = [""] * len(rows)
    if prompting.style == "llm":
        asks = [writer.ask(row) for row in rows]
        named = {ask: ask.key(prompting.llm) for ask in dict.fromkeys(asks)}
        keys = [named[ask] for ask in asks]
        scenes = _scenes(root, {key: ask for ask, key in named.items()}, prompting.llm, dry_run, figures)
    missing = "llm_pending" if dry_run else "qc_fallback"
    if prompting.style == "qc":
        missing = "qc"
    texts = [writer.prompt(row, scenes.get(key)) for row, key in zip(rows, keys, strict=True)]
    negatives = [writer.negative(row, scenes.get(key)) for row, key in zip(rows, keys, strict=True)]
    window = _window(prompting, tokenizer_path)
    fitted, unwanted = _fit(window, texts), _fit(window, negatives)
    styles = ["llm" if key in scenes else missing for key in keys]
    figures.prompts = len(fitted)
    figures.fallbacks = styles.count("qc_fallback")
    figures.cut = sum(bool(rest) for _, rest in fitted.values())
    figures.negatives_cut = sum(bool(rest) for _, rest in unwanted.values())
    figures.cut_example = next((f"{kept} [{rest}]" for kept, rest in fitted.values() if rest), "")
    if figures.cut:
        log.warning("%d prompts cut to %d tokens: %s", figures.cut, prompting.window_tokens, figures.cut_example)
    table = schema.extend(
        pairs,
        schema.PROMPTED,
        prompt=[fitted[text][0] for text in texts],
        negative_prompt=[unwanted[text][0] for text in negatives],
        prompt_style=styles,
    )
    return table, figures


def check(prompting: Prompting) -> None:
    """raises ConfigError for a tokenizer that is not there and for a language model that cannot work"""
    if prompting.tokenizer:
        _window(prompting, None)
    if prompting.style == "llm" and prompting.llm.local_model:
        llm_local.check(prompting.llm.local_model)
    elif prompting.style == "llm":
        llm.check(prompting.llm)


class _Writer:
    """Texts of a pair; a million pairs are made of few distinct words, so each is cleaned once."""

    def __init__(self, prompting: Prompting):
        self.prompting = prompting
        self.brands = {clean(name).lower(): brand for name, brand in prompting.brands.items()}
        self.clean = lru_cache(1_000_000)(lambda text: clean(text or ""))
        self.place = "{palette}" in prompting.template

    def brand(self, row: dict) -> Brand:
        return self.brands.get(self.clean(row["brand"]).lower(), Brand()) if self.brands else Brand()

    def ask(self, row: dict) -> Ask:
        texts = {k: self.clean(row[k]) for k in ("category", "brand", "query", "context")}
        return Ask(product=self.clean(row["words"]), palette=tuple(self.brand(row).palette), **texts)

    def prompt(self, row: dict, scene: Scene | None) -> str:
        palette = ", ".join(self.brand(row).palette)
        product, query, context = (self.clean(row[k]) for k in ("words", "query", "context"))
        if scene:
            return ", ".join(part for part in (product, scene.scene, palette) if part)
        text = prompt_qc(product, query, context, self.prompting.template, palette)
        return ", ".join(part for part in (text, "" if self.place else palette) if part)

    def negative(self, row: dict, scene: Scene | None) -> str:
        parts = [self.prompting.negative_prompt, self.clean(row["negative"]), self.brand(row).negative]
        return ", ".join(part for part in [*parts, scene.negative if scene else ""] if part)


def _window(prompting: Prompting, tokenizer_path: Path | None) -> Window:
    return Window(prompting.window_tokens, local_copy(prompting.tokenizer) if prompting.tokenizer else tokenizer_path)


def _fit(window: Window, texts: list[str]) -> dict[str, tuple[str, str]]:
    return {text: window.cut(text) for text in dict.fromkeys(texts)}


def _scenes(
    root: Root, asks: dict[str, Ask], model: LanguageModel, dry_run: bool, figures: PromptFigures
) -> dict[str, Scene]:
    """Scenes by key: those of earlier nights, and those that the model writes now, which are kept for later ones."""
    known = tables.read(root, "prompts", ["key", "scene", "negative"])
    known = known.filter(pc.is_in(known["key"], pa.array(list(asks), pa.string()))).to_pylist()
    scenes = {r["key"]: Scene.model_construct(scene=r["scene"], negative=r["negative"]) for r in known}
    figures.cached = len(scenes)
    new = [key for key in asks if key not in scenes]
    if dry_run:
        figures.pending = len(new)
        return scenes
    figures.over_budget = max(0, len(new) - model.max_calls)
    if figures.over_budget and not model.fallback:
        raise ConfigError(
            f"{len(new)} scenes are to be written, llm.max_calls is {model.max_calls} and llm.fallback is off"
        )
    to_ask = {key: asks[key] for key in new[: model.max_calls]}
    figures.called = len(to_ask)
    answers = _answers(root, to_ask, model) if to_ask else Answers()
    figures.failed, figures.refused = llm.reasons(answers.failed.values()), llm.reasons(answers.refused.values())
    missing = Counter(answers.failed.values()) + Counter(answers.refused.values())
    if missing:
        reason, _ = missing.most_common(1)[0]
        sentence = (
            f"{model.base_url or model.local_model} gave no usable scene for {missing.total()} of {len(to_ask)} asks"
        )
        if not model.fallback:
            raise ConfigError(f"{sentence} (mostly: {reason}) and llm.fallback is off")
        log.warning("%s (mostly: %s); these are painted from query and context", sentence, reason)
    return scenes | answers.scenes


def _answers(root: Root, asks: dict[str, Ask], model: LanguageModel) -> Answers:
    def save(scenes: dict[str, Scene]) -> None:
        rows = [
            {"key": key, "model": model.local_model or model.model, "scene": scene.scene, "negative": scene.negative}
            | {name: getattr(asks[key], name) for name in ("product", "query", "context")}
            for key, scene in scenes.items()
        ]
        _keep(root, schema.fill(pa.Table.from_pylist(rows), schema.PROMPTS) if rows else schema.PROMPTS.empty_table())

    if model.local_model:
        answers = llm_local.ask_all(asks, model)
        save(answers.scenes)
        return answers
    return llm.ask_all(asks, model, save)


def _keep(root: Root, rows: pa.Table) -> None:
    """Commit scenes to the cache; another run that commits its own at the same time does not matter."""
    for attempt in range(5):
        if not rows.num_rows:
            return
        try:
            tables.merge(root, "prompts", rows, "key", tables.version(root, "prompts"), {})
            return
        except PublishConflict:
            if attempt == 4:
                log.warning("%d scenes could not be kept for the next night: others commit all the time", rows.num_rows)
