"""A causal language model by transformers, whose answers are JSON of a given schema whatever else it would say.

Shapes: B texts of a batch, T tokens, V tokens of the vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from xgrammar import GrammarCompiler, TokenizerInfo
from xgrammar.contrib.hf import LogitsProcessor as Grammar


class CausalLM:
    """A causal model with its tokenizer from a folder in the transformers layout, safetensors only.

    schema  JSON schema of the answers: a token that no such answer goes on with is never chosen (xgrammar)
    device  on the CPU it computes in float32, elsewhere in the weights' own type
    """

    def __init__(self, path: Path, device: str, schema: dict, threads: int = 1):
        torch.set_num_threads(threads)
        how = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **how)
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **how)
        self.model = model.to(device).eval()  # pyright: ignore[reportArgumentType]  # its `to` is untyped
        ends = _ends(self.tokenizer.eos_token_id, self.model.generation_config.eos_token_id)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token_id = ends[0]
        # What the folder says of sampling is left out: temperature and seeds are the caller's.
        self.model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self.tokenizer.pad_token_id)
        size = self.model.config.get_text_config().vocab_size
        info = TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=size, stop_token_ids=ends)
        self.grammar = GrammarCompiler(info).compile_json_schema(json.dumps(schema), any_whitespace=False)

    @torch.inference_mode()
    def answers(
        self, instructions: str, messages: Sequence[str], max_tokens: int, temperature: float, seeds: Sequence[int]
    ) -> list[str]:
        """An answer to each message, all in one batch; cut off where it needs more than `max_tokens`.

        temperature  0: the likeliest token each time; above: sampled, each answer by its own of `seeds`

        Padding on the left is masked, so an answer is the same in any batch but for the order of sums: where two tokens
        are equally likely within rounding (coarser in bfloat16 than in float32), the batch may decide between them.
        """
        texts = [self._prompt(instructions, message) for message in messages]
        special = not self.tokenizer.chat_template  # a template writes them itself
        given = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=special)
        steps: list[LogitsProcessor] = [Grammar(self.grammar)]
        if temperature:
            steps.append(_Gumbel(temperature, seeds))
        ids_BT = self.model.generate(
            input_ids=given.input_ids.to(self.model.device),
            attention_mask=given.attention_mask.to(self.model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList(steps),
        )
        return self.tokenizer.batch_decode(ids_BT[:, given.input_ids.shape[1] :], skip_special_tokens=True)

    def _prompt(self, instructions: str, message: str) -> str:
        """As the tokenizer's chat template has it, without one as instructions, an empty line, message and a line's end."""
        whole = f"{instructions}\n\n{message}"
        if not self.tokenizer.chat_template:
            return f"{whole}\n"
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        user = {"role": "user", "content": message}
        try:
            return self.tokenizer.apply_chat_template([{"role": "system", "content": instructions}, user], **how)
        except TemplateError:  # some templates know no system message
            return self.tokenizer.apply_chat_template([user | {"content": whole}], **how)


class _Gumbel(LogitsProcessor):
    """Noise by which the largest logit is a sample at a temperature (the Gumbel-max trick: Maddison et al., 2014), drawn
    for each row by a generator of its own."""

    def __init__(self, temperature: float, seeds: Sequence[int]):
        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform_BV = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        return scores.float() / self.temperature - (-uniform_BV.log()).log().to(scores.device)


def _ends(*given: int | list[int] | None) -> list[int]:
    """Tokens that end an answer, of the tokenizer first."""
    return list(
        dict.fromkeys(i for some in given for i in (some if isinstance(some, list) else [some]) if i is not None)
    )
