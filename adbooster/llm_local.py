"""Scenes written by a causal language model on the cluster's own GPUs: vLLM through `ray.data.llm`."""

import importlib.util

import pyarrow as pa

from adbooster.errors import ConfigError
from adbooster.llm import INSTRUCTIONS, Answers, Ask, LanguageModel, parse


def check(local_model: str) -> None:
    """raises ConfigError where vLLM is not installed"""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"llm.local_model {local_model} needs vLLM on every node (pip install 'ray[llm]'), which is not installed "
            "here; or give llm.base_url and llm.model of an endpoint"
        )


def ask_all(asks: dict[str, Ask], llm: LanguageModel) -> Answers:
    """Every ask once, in one Ray Data pass; the answers are checked as those of an endpoint are."""
    check(llm.local_model)
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    def before(row: dict) -> dict:
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": row["message"]}]
        return {"messages": messages, "sampling_params": sampling}

    sampling = {"temperature": llm.temperature, "max_tokens": 4 * llm.max_words}
    processor = build_processor(
        vLLMEngineProcessorConfig(model_source=llm.local_model, batch_size=32),
        preprocess=before,
        postprocess=lambda row: {"key": row["key"], "answer": row["generated_text"]},
    )
    rows = pa.table({"key": list(asks), "message": [a.message() for a in asks.values()]})
    answers = Answers()
    for row in processor(ray.data.from_arrow(rows)).iter_rows():
        try:
            answers.scenes[row["key"]] = parse(row["answer"], asks[row["key"]], llm.max_words)
        except ValueError as e:
            answers.refused[row["key"]] = str(e)
    return answers
