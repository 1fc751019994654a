"""Scenes by a causal language model from a folder: what it may answer, when it is refused, and what a failure costs."""

import json
import shutil

import pyarrow.compute as pc
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adbooster.contracts.errors import ConfigError
from adbooster.engine import language_model as engine
from adbooster.models.causal_lm import CausalLM
from adbooster.prompts import checks, writer
from adbooster.prompts.config import Prompting
from adbooster.prompts.language_model import INSTRUCTIONS, SceneRequest, strict_schema
from adbooster.storage import tables
from adbooster.tiny import texts
from tests.conftest import MODELS
from tests.prompts.test_language_model import pairs

WRITER = MODELS / "writer"
WINTER = SceneRequest("a mug", "Mugs", "", "a warm mug", "skiing in the snowy mountains")
PARTY = SceneRequest("a pair of headphones", "", "", "music", "a cake with candles and balloons for the birthday")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A folder with a causal model that has learnt nothing, and no chat template."""
    folder = tmp_path_factory.mktemp("untrained")
    tokenizer = texts.writer_tokenizer(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(folder)
    return folder


def local(folder, **llm) -> Prompting:
    return Prompting.model_validate(
        {"style": "llm", "llm": {"local_model": str(folder), "engine": "transformers"} | llm}
    )


def ask(model, requests, max_tokens=80, temperature=0.0, seeds=None):
    messages = [request.message() for request in requests]
    return model.answers(INSTRUCTIONS, messages, max_tokens, temperature, seeds or list(range(len(messages))))


def test_even_a_model_that_has_learnt_nothing_begins_an_answer_of_the_schema(untrained):
    schema = strict_schema() | {"properties": {n: {"type": "string", "maxLength": 5} for n in ("scene", "negative")}}
    model = CausalLM(untrained, "cpu", schema)
    for answer in ask(model, [WINTER, PARTY]):
        assert set(json.loads(answer)) == {"scene", "negative"}


def test_an_answer_is_the_same_in_any_batch():
    model = CausalLM(WRITER, "cpu", strict_schema())
    together = ask(model, [WINTER, PARTY, WINTER])
    assert together[0] == together[2] == ask(model, [WINTER])[0]
    assert together[1] == ask(model, [PARTY])[0]
    assert together[0] != together[1]


def test_sampling_follows_from_the_seed_of_each_request_alone(untrained):
    model = CausalLM(untrained, "cpu", strict_schema())
    first, second = ask(model, [WINTER, WINTER], 12, 1.0, [1, 2])
    assert first != second
    assert ask(model, [WINTER, PARTY], 12, 1.0, [2, 5])[0] == second
    assert ask(model, [WINTER], 12, 1.0, [1]) == [first]


def test_without_a_chat_template_instructions_and_message_are_joined(untrained):
    plain, own = CausalLM(untrained, "cpu", strict_schema()), CausalLM(WRITER, "cpu", strict_schema())
    assert plain._prompt("Write.", "{}") == "Write.\n\n{}\n"
    assert own._prompt("Write.", "{}") == "{}\n"
    own.tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    own.tokenizer.chat_template += "{{ messages[0]['content'] }}"
    assert own._prompt("Write.", "{}") == "Write.\n\n{}"


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no safetensors"),
        ("", "is a BertModel"),
        ("pickles", "holds pytorch_model.bin"),
    ],
)
def test_a_folder_that_cannot_write_is_refused_in_one_sentence(tmp_path, lacks, says):
    folder = shutil.copytree(WRITER, tmp_path / "model")
    if lacks == "pickles":
        (folder / "pytorch_model.bin").write_bytes(b"x")
    elif lacks:
        (folder / lacks).unlink()
    else:
        config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertModel"]}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=says) as error:
        checks.check(local(folder))
    assert "\n" not in str(error.value)
    checks.check(local(WRITER))


def test_a_model_that_is_not_there_and_vllm_that_is_not_installed_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no model at"):
        checks.check(local(tmp_path / "none"))
    with pytest.raises(ConfigError, match="llm.engine vllm needs vLLM"):
        checks.check(local(WRITER, engine="vllm"))


def test_what_is_not_answered_or_refused_is_painted_from_query_and_context(root, monkeypatch):
    def answers(messages, pool, **how):
        good, bad, *_ = messages
        yield good, '{"scene": "fresh snow under tall pines", "negative": ""}'
        yield bad, '{"scene": "a crowd of people", "negative": ""}'

    monkeypatch.setattr(engine, "by_transformers", answers)
    wanted = pairs("a red teapot", "a mug", "a scarf")
    prompter = writer.Prompter(root, local(WRITER))
    written = prompter.write(wanted)
    assert sorted(written["prompt_style"].to_pylist()) == ["llm", "qc_fallback", "qc_fallback"]
    assert prompter.figures.failed == {"the local model failed": 1}
    assert sum(prompter.figures.refused.values()) == 1
    with pytest.raises(ConfigError, match="fallback is off"):
        writer.Prompter(root, local(WRITER, fallback=False)).write(wanted)


def test_scenes_come_from_a_pool_and_are_kept(root, warm_ray):
    wanted = pairs("a mug", "a scarf")
    prompter = writer.Prompter(root, local(WRITER))
    first = prompter.write(wanted)
    assert first["prompt_style"].to_pylist() == ["llm"] * 2
    assert prompter.figures.called == len(tables.read(root, "prompts"))
    again = writer.Prompter(root, local(WRITER))
    assert again.write(wanted).equals(first)
    assert again.figures.called == 0


def test_a_model_that_cannot_be_loaded_does_not_stop_the_night(root, tmp_path, warm_ray):
    folder = shutil.copytree(WRITER, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not weights")
    prompter = writer.Prompter(root, local(folder))
    written = prompter.write(pairs())
    assert pc.unique(written["prompt_style"]).to_pylist() == ["qc_fallback"]
    assert set(prompter.figures.failed) == {"the local model failed"}
