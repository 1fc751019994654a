"""Scenes written by a causal language model on the cluster's own GPUs, with the checks of an endpoint's answers."""

from adbooster.contracts.errors import ConfigError
from adbooster.prompts.config import LanguageModel
from adbooster.prompts.language_model import INSTRUCTIONS, Answers, SceneRequest, parse


def check(local_model: str) -> None:
    """raises ConfigError where vLLM is not installed"""
    from adbooster.engine import language_model

    if not language_model.installed():
        raise ConfigError(
            f"llm.local_model {local_model} needs vLLM on every node (pip install 'ray[llm]'), which is not installed "
            "here; or give llm.base_url and llm.model of an endpoint"
        )


def write_scenes(requests: dict[str, SceneRequest], llm: LanguageModel) -> Answers:
    """Every request once; an answer that breaks a rule is refused."""
    check(llm.local_model)
    from adbooster.engine import language_model

    messages = {key: request.message() for key, request in requests.items()}
    texts = language_model.generate_texts(
        llm.local_model, INSTRUCTIONS, messages, llm.temperature, max_tokens=4 * llm.max_words
    )
    answers = Answers()
    for key, text in texts:
        try:
            answers.scenes[key] = parse(text, requests[key], llm.max_words)
        except ValueError as e:
            answers.refused[key] = str(e)
    return answers
