"""Texts from a causal language model on the cluster's own machines: by vLLM through `ray.data.llm`, or by transformers.

An error that ends the models' actors ends the texts, not the job: messages without an answer are the caller's to count.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from adbooster.contracts import schema
from adbooster.contracts.settings import Pool
from adbooster.engine.isolation import Failures
from adbooster.engine.pools import dataset, preflight, through

log = logging.getLogger(__name__)
_ASKED = pa.schema([("key", pa.string()), ("message", pa.string()), ("reject", pa.string())])
_ANSWERED = _ASKED.append(pa.field("answer", pa.string()))


class Answerer:
    """Answers a batch of messages by transformers, as JSON of `answer_schema`."""

    def __init__(self, model: str, device: str, threads: int, instructions: str, answer_schema: dict, **how: Any):
        from adbooster.models.causal_lm import CausalLM
        from adbooster.storage.model_store import local_copy

        self.model = CausalLM(local_copy(model), device, answer_schema, threads)
        self.instructions, self.how = instructions, how

    def __call__(self, rows: pa.Table) -> pa.Table:
        seeds = [int(key[:15], 16) for key in rows["key"].to_pylist()]
        answers = self.model.answers(self.instructions, rows["message"].to_pylist(), seeds=seeds, **self.how)
        return schema.extend(rows, _ANSWERED, answer=answers)


def by_transformers(messages: dict[str, str], pool: Pool, **init: Any) -> Iterator[tuple[str, str]]:
    """(key, answer) of every message that the model could answer, in one Ray Data pass and in no fixed order.

    messages  by key, hex digits that seed the answer's sampling; those of like length share a batch
    init      as Answerer takes it, but for device and threads, which follow from the pool
    raises    ConfigError if the cluster could never hold the pool
    """
    preflight({"language model": pool})
    keys = sorted(messages, key=lambda key: (len(messages[key]), key))
    rows = pa.table(
        {"key": keys, "message": [messages[key] for key in keys], "reject": pa.nulls(len(keys), pa.string())}
    )
    init |= {"device": "cuda" if pool.gpus else "cpu", "threads": max(1, round(pool.cpus))}
    failures = Failures(None, "", "no_answer")
    done = through(dataset(rows, 4 * pool.batch), Answerer, pool, _ANSWERED, failures, **init)
    for row in _until_it_ends(done):
        if row["reject"] is None:
            yield row["key"], row["answer"]


def by_vllm(
    model: str, instructions: str, messages: dict[str, str], temperature: float, max_tokens: int
) -> Iterator[tuple[str, str]]:
    """(key, answer) of every message, in one Ray Data pass and in no fixed order.

    model     folder or hub id of a causal model
    messages  by key: the user message that follows the shared `instructions`
    """
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
    for row in _until_it_ends(processor(ray.data.from_arrow(rows))):
        yield row["key"], row["answer"]


def _until_it_ends(ds: ray.data.Dataset) -> Iterator[dict]:
    """The rows that come before the pass ends, be it by an error."""
    try:
        yield from ds.iter_rows()
    except RayError as e:
        log.warning("the language model's actors ended: %s", str(e).strip().splitlines()[-1])
