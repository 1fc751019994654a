"""Texts from a causal language model on the cluster's own GPUs: vLLM through `ray.data.llm`."""

import importlib.util
from collections.abc import Iterator

import pyarrow as pa


def installed() -> bool:
    """Whether vLLM is installed on this machine."""
    return importlib.util.find_spec("vllm") is not None


def generate_texts(
    model: str, instructions: str, messages: dict[str, str], temperature: float, max_tokens: int
) -> Iterator[tuple[str, str]]:
    """(key, answer) of every message, in one Ray Data pass and in no fixed order.

    model     folder or hub id of a causal model
    messages  by key: the user message that follows the shared `instructions`
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    def conversation(row: dict) -> dict:
        chat = [{"role": "system", "content": instructions}, {"role": "user", "content": row["message"]}]
        return {"messages": chat, "sampling_params": {"temperature": temperature, "max_tokens": max_tokens}}

    processor = build_processor(
        vLLMEngineProcessorConfig(model_source=model, batch_size=32),
        preprocess=conversation,
        postprocess=lambda row: {"key": row["key"], "answer": row["generated_text"]},
    )
    rows = pa.table({"key": list(messages), "message": list(messages.values())})
    for row in processor(ray.data.from_arrow(rows)).iter_rows():
        yield row["key"], row["answer"]
