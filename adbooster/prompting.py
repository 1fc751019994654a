"""The prompts of a night: one for each pair of a product and a cohort."""

import pyarrow as pa
from pydantic import Field

from adbooster import schema
from adbooster.objects import Root
from adbooster.prompts import NEGATIVE_PROMPT, prompt_qc
from adbooster.settings import Config


class Prompting(Config):
    """How a product and a cohort become text. What it yields names the request; these settings themselves do not."""

    template: str = "{product}, {query}, {context}"
    """z_QC as a template of product, query and context."""
    negative_prompt: str = Field(NEGATIVE_PROMPT, max_length=1000)
    """What must not be painted."""


def write_prompts(root: Root, pairs: pa.Table, prompting: Prompting) -> pa.Table:
    """`pairs` (schema.PAIRS) in their order with prompt, negative_prompt and prompt_style (schema.PROMPTED)."""
    prompts = [
        prompt_qc(product, query, context, prompting.template)
        for product, query, context in zip(*(pairs[c].to_pylist() for c in ("words", "query", "context")), strict=True)
    ]
    n = pairs.num_rows
    return schema.extend(
        pairs, schema.PROMPTED, prompt=prompts, negative_prompt=[prompting.negative_prompt] * n, prompt_style=["qc"] * n
    )
