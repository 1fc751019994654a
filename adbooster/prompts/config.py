"""Settings of prompts: template, brands, language model; and the counts of a run."""

import importlib.util
from collections import Counter
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from adbooster.contracts.settings import Config, Pool, Uri
from adbooster.prompts.templates import NEGATIVE_PROMPT


class Endpoint(Config):
    """An OpenAI-compatible endpoint, and how it is called."""

    base_url: str = ""
    """Address of the endpoint, such as http://vllm:8000/v1."""
    model: str = ""
    """Name of the model there."""
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key; not needed for an endpoint without authentication."""
    response_format: str = Field(default="json_schema", pattern="^(json_schema|json_object|text)$")
    """How JSON is requested from the endpoint; answers are checked in any case."""
    timeout_s: float = Field(default=30, gt=0)
    """Seconds for one call."""
    max_retries: int = Field(default=3, ge=0, le=10)
    """Further calls after 408, 409, 429, 5xx and lost connections, with exponential backoff."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Calls at once."""


class LanguageModel(Endpoint):
    """A language model behind an OpenAI-compatible endpoint, or on the cluster's own machines."""

    local_model: Uri = ""
    """Instead of an endpoint: a causal model's folder in transformers layout, safetensors only, run on the cluster."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What runs the local model: vLLM through ray.data.llm, or transformers in a pool; auto: vLLM where it is installed."""
    pool: Pool = Pool()
    """Actors in which transformers runs the local model; on GPUs if they reserve any."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature."""
    max_calls: int = Field(default=10_000, ge=0)
    """Prompts a run may request; pairs beyond it fall back."""
    max_words: int = Field(default=60, ge=5)
    """A scene with more words is refused."""
    fallback: bool = True
    """Where no usable answer comes, paint from z_QC and report it; off: the run stops before it paints."""

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens."""
        return 4 * self.max_words

    @property
    def by_vllm(self) -> bool:
        """Whether vLLM runs the local model."""
        return self.engine == "vllm" or (self.engine == "auto" and importlib.util.find_spec("vllm") is not None)


class Brand(Config):
    """What holds for one brand's products."""

    negative: str = Field(default="", max_length=300)
    """What must not be painted, besides what holds for all."""
    palette: list[str] = Field(default=[], max_length=8)
    """Colour words that the scene should use."""


class Prompting(Config):
    """How a product and a cohort become text. What it yields names the request; these settings themselves do not."""

    style: Literal["qc", "llm"] = "qc"
    """qc: the paper's z_QC, product, query and context by `template`; llm: its z_P, a scene by a language model."""
    template: str = "{product}, {query}, {context}"
    """z_QC as a template of product, query, context and palette; the last words are cut first."""
    negative_prompt: str = Field(default=NEGATIVE_PROMPT, max_length=1000)
    """What must not be painted."""
    brands: dict[str, Brand] = Field(default={})
    """Additions by brand, as the feed names it (case does not matter)."""
    window_tokens: int = Field(default=77, ge=8)
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
    """Where the prompts of a run came from; counts are of pairs unless stated otherwise."""

    style: str = "qc"
    pairs: int = 0
    prompts: int = 0
    """Distinct prompts; one of products that are planned in several parts counts in each."""
    cached: int = 0
    """Distinct scenes of the language model taken from tables/prompts."""
    called: int = 0
    """Distinct scenes requested in this run."""
    pending: int = 0
    """Distinct scenes that the run after this dry run would request."""
    failed: dict[str, int] = {}
    """Distinct scenes without an answer, by reason."""
    refused: dict[str, int] = {}
    """Distinct scenes whose answer broke a rule, by reason."""
    over_budget: int = 0
    """Distinct scenes not requested because of max_calls."""
    fallbacks: int = 0
    """Pairs of style llm that are painted from z_QC."""
    cut: int = 0
    """Distinct prompts longer than the window."""
    cut_example: str = ""
    """One of them, with what was cut in brackets."""
    negatives_cut: int = 0
    """Distinct negative prompts longer than the window."""

    def plus(self, other: "PromptFigures") -> "PromptFigures":
        """The counts of both; the first example."""
        values: dict[str, Any] = {"style": self.style, "cut_example": self.cut_example or other.cut_example}
        for name in type(self).model_fields.keys() - values.keys():
            mine, theirs = getattr(self, name), getattr(other, name)
            values[name] = dict(Counter(mine) + Counter(theirs)) if isinstance(mine, dict) else mine + theirs
        return PromptFigures(**values)
