"""The prompts of a night: one for each pair of a product and a cohort, by template or by a language model."""

import logging
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.contracts.text import clean
from adbooster.prompts import endpoint, language_model, local_model
from adbooster.prompts.config import Brand, LanguageModel, PromptFigures, Prompting
from adbooster.prompts.joined import SEPARATOR, Joined, Texts, both, by_value
from adbooster.prompts.language_model import Answers, Scene, SceneRequest
from adbooster.prompts.templates import prompt_qc
from adbooster.prompts.token_window import token_window
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


class Prompter:
    """Writes the prompts of a run, some pairs at a time; `figures` counts all that it has written.

    dry_run  calls no model and writes nothing
    raises   ConfigError for a tokenizer that cannot be read
    """

    def __init__(self, root: Root, prompting: Prompting, dry_run: bool = False, tokenizer_path: Path | None = None):
        self.root, self.prompting, self.dry_run = root, prompting, dry_run
        self.window = token_window(prompting, tokenizer_path)
        self.joined = Joined(prompting.template, self.window)
        self.writer = _Writer(prompting)
        self.figures = PromptFigures(style=prompting.style)

    def write(self, pairs: pa.Table) -> pa.Table:
        """`pairs` (schema.PAIRS) in their order with prompt, negative_prompt and prompt_style (schema.PROMPTED).

        prompt_style is qc; llm; qc_fallback, a pair of style llm without a usable scene; or llm_pending in a dry run.
        raises ConfigError with `llm.fallback` off if a scene is missing
        """
        pairs = pairs.combine_chunks()
        if self.prompting.style == "llm" or not self.joined.possible:
            texts, negatives, styles = self._one_by_one(pairs)
        else:
            texts, negatives, styles = self._together(pairs)
        prompts, cut = self._cut(texts.texts, pc.greater(texts.most, self.window.room))
        fitted = by_value(negatives, lambda text: self.window.cut(text)[0])
        counts = PromptFigures(
            pairs=len(pairs),
            prompts=pc.count_distinct(texts.texts).as_py(),
            fallbacks=pc.sum(pc.equal(styles, "qc_fallback")).as_py() or 0,
            cut=len(cut),
            cut_example=next(iter(cut), ""),
            negatives_cut=sum(bool(self.window.cut(text)[1]) for text in pc.unique(negatives).to_pylist()),
        )
        if cut:
            log.warning("%d prompts cut to %d tokens: %s", len(cut), self.prompting.window_tokens, next(iter(cut)))
        self.figures = self.figures.plus(counts)
        new = {"prompt": prompts, "negative_prompt": fitted, "prompt_style": styles}
        return schema.check(pa.table({name: pairs[name] for name in pairs.column_names} | new), schema.PROMPTED)

    def _together(self, pairs: pa.Table) -> tuple[Texts, pa.Array, pa.Array]:
        """By columns; pairs of a brand with a palette, which are few, one by one."""
        names = ("words", "query", "context", "negative", "brand")
        words, query, context, negative, brands = (by_value(_text(pairs, name), self.writer.clean) for name in names)
        texts, negatives = self.joined(words, query, context), by_value(both(negative, brands), self.writer.negative_of)
        styles = pa.array(["qc"]).take(pa.array(np.zeros(len(pairs), np.int64)))
        if not any(brand.palette for brand in self.writer.brands.values()):
            return texts, negatives, styles
        coloured = pc.not_equal(by_value(brands, lambda name: " ".join(self.writer.brand(name).palette)), "")
        own, _, _ = self._one_by_one(pairs.filter(coloured))
        return Texts(*map(pc.replace_with_mask, texts, (coloured, coloured), own)), negatives, styles

    def _one_by_one(self, pairs: pa.Table) -> tuple[Texts, pa.Array, pa.Array]:
        """Pairs whose text does not follow from that of its product and that of its cohort."""
        rows = pairs.select(["words", "category", "brand", "query", "context", "negative"]).to_pylist()
        keys, scenes, without = [""] * len(rows), {}, "qc"
        if self.prompting.style == "llm":
            requests = [self.writer.request(row) for row in rows]
            key_of = {request: request.key(self.prompting.llm) for request in dict.fromkeys(requests)}
            keys = [key_of[request] for request in requests]
            scenes = self._scenes({key: request for request, key in key_of.items()})
            without = "llm_pending" if self.dry_run else "qc_fallback"
        found = [scenes.get(key) for key in keys]
        texts = [self.writer.prompt(row, scene) for row, scene in zip(rows, found, strict=True)]
        negatives = [self.writer.negative(row, scene) for row, scene in zip(rows, found, strict=True)]
        styles = ["llm" if scene else without for scene in found]
        most = pa.array([self.window.count(text) for text in texts], pa.int32())
        return (
            Texts(pa.array(texts, pa.string()), most),
            pa.array(negatives, pa.string()),
            pa.array(styles, pa.string()),
        )

    def _cut(self, texts: pa.Array, long: pa.Array) -> tuple[pa.Array, dict[str, None]]:
        """The texts as the encoder reads them, and those that are cut, with the rest in brackets."""
        cut: dict[str, None] = {}

        def fitted(text: str) -> str:
            kept, rest = self.window.cut(text)
            if rest:
                cut[f"{kept} [{rest}]"] = None
            return kept

        return pc.replace_with_mask(texts, long, by_value(texts.filter(long), fitted)), cut

    def _scenes(self, requests: dict[str, SceneRequest]) -> dict[str, Scene]:
        """Scenes by key; calls that earlier pairs of the run have used count against llm.max_calls."""
        model, called = self.prompting.llm, self.figures.called
        left = model.model_copy(update={"max_calls": max(0, model.max_calls - called)})
        scenes, counts = _scenes(self.root, requests, left, self.dry_run)
        self.figures = self.figures.plus(PromptFigures(**counts))
        return scenes


def _text(pairs: pa.Table, name: str) -> pa.Array:
    return pc.fill_null(pairs[name].combine_chunks(), "")


class _Writer:
    """Texts of a pair; a million pairs are made of few distinct words, so each is cleaned once."""

    def __init__(self, prompting: Prompting):
        self.prompting = prompting
        self.brands = {clean(name).lower(): brand for name, brand in prompting.brands.items()}
        self.clean = lru_cache(1_000_000)(lambda text: clean(text or ""))
        self.place = "{palette}" in prompting.template

    def brand(self, name: str | None) -> Brand:
        return self.brands.get(self.clean(name).lower(), Brand()) if self.brands else Brand()

    def request(self, row: dict) -> SceneRequest:
        texts = {k: self.clean(row[k]) for k in ("category", "brand", "query", "context")}
        return SceneRequest(product=self.clean(row["words"]), palette=tuple(self.brand(row["brand"]).palette), **texts)

    def prompt(self, row: dict, scene: Scene | None) -> str:
        palette = ", ".join(self.brand(row["brand"]).palette)
        product, query, context = (self.clean(row[k]) for k in ("words", "query", "context"))
        if scene:
            return ", ".join(part for part in (product, scene.scene, palette) if part)
        text = prompt_qc(product, query, context, self.prompting.template, palette)
        return ", ".join(part for part in (text, "" if self.place else palette) if part)

    def negative(self, row: dict, scene: Scene | None) -> str:
        parts = [self.prompting.negative_prompt, self.clean(row["negative"]), self.brand(row["brand"]).negative]
        return ", ".join(part for part in [*parts, scene.negative if scene else ""] if part)

    def negative_of(self, key: str) -> str:
        """key  a cohort's negative text and a brand, as joined.both"""
        negative, brand = key.split(SEPARATOR)
        return self.negative({"negative": negative, "brand": brand}, None)


def _scenes(
    root: Root, requests: dict[str, SceneRequest], model: LanguageModel, dry_run: bool
) -> tuple[dict[str, Scene], dict[str, Any]]:
    """Scenes by key: those of earlier nights, and those that the model writes now, which are kept for later ones.

    Beside them the fields of PromptFigures with the numbers of each.
    """
    wanted = pc.field("key").isin(pa.array(list(requests), pa.string()))
    known = tables.read(root, "prompts", ["key", "scene", "negative"], where=wanted).to_pylist()
    scenes = {r["key"]: Scene.model_construct(scene=r["scene"], negative=r["negative"]) for r in known}
    new = [key for key in requests if key not in scenes]
    if dry_run:
        return scenes, {"cached": len(scenes), "pending": len(new)}
    over_budget = max(0, len(new) - model.max_calls)
    if over_budget and not model.fallback:
        raise ConfigError(
            f"{len(new)} scenes are to be written, llm.max_calls is {model.max_calls} and llm.fallback is off"
        )
    to_send = {key: requests[key] for key in new[: model.max_calls]}
    answers = _answers(root, to_send, model) if to_send else Answers()
    _report_missing(answers, len(to_send), model)
    return scenes | answers.scenes, {
        "cached": len(scenes),
        "called": len(to_send),
        "over_budget": over_budget,
        "failed": endpoint.reasons(answers.failed.values()),
        "refused": endpoint.reasons(answers.refused.values()),
    }


def _report_missing(answers: Answers, sent: int, model: LanguageModel) -> None:
    """A line in the log where requests got no usable scene; raises ConfigError with `llm.fallback` off."""
    missing = Counter(answers.failed.values()) + Counter(answers.refused.values())
    if not missing:
        return
    reason, _ = missing.most_common(1)[0]
    sentence = f"{model.base_url or model.local_model} gave no usable scene for {missing.total()} of {sent} requests"
    if not model.fallback:
        raise ConfigError(f"{sentence} (mostly: {reason}) and llm.fallback is off")
    log.warning("%s (mostly: %s); these are painted from query and context", sentence, reason)


def _answers(root: Root, requests: dict[str, SceneRequest], model: LanguageModel) -> Answers:
    def save(scenes: dict[str, Scene]) -> None:
        rows = [
            {"key": key, "model": model.local_model or model.model, "scene": scene.scene, "negative": scene.negative}
            | {name: getattr(requests[key], name) for name in ("product", "query", "context")}
            for key, scene in scenes.items()
        ]
        _keep(root, schema.fill(pa.Table.from_pylist(rows), schema.PROMPTS) if rows else schema.PROMPTS.empty_table())

    how = local_model if model.local_model else language_model
    return how.write_scenes(requests, model, save)


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
