"""Scenes written by a causal language model on the cluster's own machines, with the checks of an endpoint's answers."""

from collections.abc import Callable, Iterator
from itertools import islice

from adbooster.prompts.config import LanguageModel
from adbooster.prompts.language_model import INSTRUCTIONS, Answers, Scene, SceneRequest, parse, strict_schema

SAVE_EVERY = 500


def write_scenes(
    requests: dict[str, SceneRequest], llm: LanguageModel, save: Callable[[dict[str, Scene]], None]
) -> Answers:
    """Answer each request once; `save` gets the scenes, a few hundred at a time. An answer that breaks a rule is refused."""
    answers = Answers()
    texts = _texts({key: request.message() for key, request in requests.items()}, llm)
    while some := list(islice(texts, SAVE_EVERY)):
        scenes = {}
        for key, text in some:
            try:
                scenes[key] = parse(text, requests[key], llm.max_words)
            except ValueError as e:
                answers.refused[key] = str(e)
        save(scenes)
        answers.scenes.update(scenes)
    for key in requests.keys() - answers.scenes.keys() - answers.refused.keys():
        answers.failed[key] = "the local model failed"
    return answers


def _texts(messages: dict[str, str], llm: LanguageModel) -> Iterator[tuple[str, str]]:
    from adbooster.engine import language_model

    if llm.by_vllm:
        return language_model.by_vllm(llm.local_model, INSTRUCTIONS, messages, llm.temperature, llm.max_tokens)
    how = {"model": llm.local_model, "instructions": INSTRUCTIONS, "answer_schema": strict_schema()}
    how |= {"max_tokens": llm.max_tokens, "temperature": llm.temperature}
    return language_model.by_transformers(messages, llm.pool, **how)
