"""The prompts of a night: one for each pair of a product and a cohort, by template or by a language model."""

import logging
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, PublishConflict
from adbooster.contracts.text import clean
from adbooster.prompts import language_model, local_model
from adbooster.prompts.config import Brand, LanguageModel, PromptFigures, Prompting
from adbooster.prompts.language_model import Answers, Scene, SceneRequest
from adbooster.prompts.templates import prompt_qc
from adbooster.prompts.token_window import Window, token_window
from adbooster.storage import tables
from adbooster.storage.objects import Root

log = logging.getLogger(__name__)


def write_prompts(
    root: Root, pairs: pa.Table, prompting: Prompting, dry_run: bool = False, tokenizer_path: Path | None = None
) -> tuple[pa.Table, PromptFigures]:
    """`pairs` (schema.PAIRS) in their order with prompt, negative_prompt and prompt_style (schema.PROMPTED).

    prompt_style is qc; llm; qc_fallback, a pair of style llm without a usable scene; or llm_pending in a dry run,
    which calls no model and writes nothing.
    raises ConfigError with `llm.fallback` off if a scene is missing
    """
    writer = _Writer(prompting)
    rows = pairs.select(["words", "category", "brand", "query", "context", "negative"]).to_pylist()
    keys: list[str] = [""] * len(rows)
    scenes: dict[str, Scene] = {}
    scene_figures: dict[str, Any] = {}
    if prompting.style == "llm":
        requests = [writer.request(row) for row in rows]
        key_of = {request: request.key(prompting.llm) for request in dict.fromkeys(requests)}
        keys = [key_of[request] for request in requests]
        scenes, scene_figures = _scenes(root, {key: request for request, key in key_of.items()}, prompting.llm, dry_run)
    without_scene = "qc" if prompting.style == "qc" else "llm_pending" if dry_run else "qc_fallback"
    texts = [writer.prompt(row, scenes.get(key)) for row, key in zip(rows, keys, strict=True)]
    negatives = [writer.negative(row, scenes.get(key)) for row, key in zip(rows, keys, strict=True)]
    window = token_window(prompting, tokenizer_path)
    fitted, fitted_negatives = _fit(window, texts), _fit(window, negatives)
    styles = ["llm" if key in scenes else without_scene for key in keys]
    cut = [f"{kept} [{rest}]" for kept, rest in fitted.values() if rest]
    if cut:
        log.warning("%d prompts cut to %d tokens: %s", len(cut), prompting.window_tokens, cut[0])
    table = schema.extend(
        pairs,
        schema.PROMPTED,
        prompt=[fitted[text][0] for text in texts],
        negative_prompt=[fitted_negatives[text][0] for text in negatives],
        prompt_style=styles,
    )
    return table, PromptFigures(
        style=prompting.style,
        pairs=len(rows),
        prompts=len(fitted),
        fallbacks=styles.count("qc_fallback"),
        cut=len(cut),
        cut_example=cut[0] if cut else "",
        negatives_cut=sum(bool(rest) for _, rest in fitted_negatives.values()),
        **scene_figures,
    )


class _Writer:
    """Texts of a pair; a million pairs are made of few distinct words, so each is cleaned once."""

    def __init__(self, prompting: Prompting):
        self.prompting = prompting
        self.brands = {clean(name).lower(): brand for name, brand in prompting.brands.items()}
        self.clean = lru_cache(1_000_000)(lambda text: clean(text or ""))
        self.place = "{palette}" in prompting.template

    def brand(self, row: dict) -> Brand:
        return self.brands.get(self.clean(row["brand"]).lower(), Brand()) if self.brands else Brand()

    def request(self, row: dict) -> SceneRequest:
        texts = {k: self.clean(row[k]) for k in ("category", "brand", "query", "context")}
        return SceneRequest(product=self.clean(row["words"]), palette=tuple(self.brand(row).palette), **texts)

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


def _fit(window: Window, texts: list[str]) -> dict[str, tuple[str, str]]:
    return {text: window.cut(text) for text in dict.fromkeys(texts)}


def _scenes(
    root: Root, requests: dict[str, SceneRequest], model: LanguageModel, dry_run: bool
) -> tuple[dict[str, Scene], dict[str, Any]]:
    """Scenes by key: those of earlier nights, and those that the model writes now, which are kept for later ones.

    Beside them the fields of PromptFigures with the numbers of each.
    """
    known = tables.read(root, "prompts", ["key", "scene", "negative"])
    known = known.filter(pc.is_in(known["key"], pa.array(list(requests), pa.string()))).to_pylist()
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
        "failed": language_model.reasons(answers.failed.values()),
        "refused": language_model.reasons(answers.refused.values()),
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

    if model.local_model:
        answers = local_model.write_scenes(requests, model)
        save(answers.scenes)
        return answers
    return language_model.write_scenes(requests, model, save)


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
