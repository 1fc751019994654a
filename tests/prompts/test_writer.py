import time

import pyarrow as pa
import pytest
from pydantic import ValidationError

from adbooster.contracts import schema
from adbooster.prompts import writer
from adbooster.prompts.config import Prompting
from adbooster.prompts.token_window import Window
from tests.conftest import MODELS, row


def pair(**values):
    values = {"words": "a mug", "query": "coffee", "context": "a snowy day"} | values
    return pa.Table.from_pylist([row(schema.PAIRS, product_id="p", cohort_id="c", **values)], schema.PAIRS)


def written(root, pairs, **settings):
    prompter = writer.Prompter(root, Prompting.model_validate(settings))
    return prompter.write(pairs).to_pylist()[0], prompter.figures


def test_z_qc_with_what_brand_and_cohort_add(root):
    brands = {"Acme": {"negative": "plastic", "palette": ["teal", "sand"]}}
    found, _ = written(root, pair(brand="ACME", negative="rain"), brands=brands)
    assert found["prompt"] == "a mug, coffee, a snowy day, teal, sand"
    assert found["negative_prompt"] == "people, person, face, hands, text, logo, watermark, rain, plastic"
    found, _ = written(root, pair(brand="acme"), brands=brands, template="{palette} {product} for {query}")
    assert found["prompt"] == "teal, sand a mug for coffee"


def test_what_is_empty_leaves_no_stray_comma(root):
    assert written(root, pair(query="", context=None))[0]["prompt"] == "a mug"


@pytest.mark.parametrize(
    "template", ["{product.__class__}", "{query}", "{product} {name}", "{product", "{0} {product}"]
)
def test_a_template_with_other_fields_is_refused(template):
    with pytest.raises(ValidationError):
        Prompting(template=template)


@pytest.mark.parametrize("tokenizer", ["", str(MODELS / "outpaint" / "tokenizer")])
def test_a_long_prompt_is_cut_between_words_and_said(root, tokenizer):
    found, figures = written(root, pair(context="pines and snow " * 40), tokenizer=tokenizer)
    assert found["prompt"].startswith("a mug, coffee, pines and snow")
    assert figures.cut == 1
    kept, rest = figures.cut_example.removesuffix("]").split(" [")
    assert kept == found["prompt"]
    assert f"{kept} {rest}" == "a mug, coffee, " + " ".join(["pines and snow"] * 40)


def test_the_window_is_the_tokenizers_own():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "outpaint" / "tokenizer")
    window = Window(77, MODELS / "outpaint" / "tokenizer")
    for text in (
        "a mug, coffee in the snow!",
        "señor's façade; 日本語 1,234.50€ x_y",
        "word " * 100,
        "don't -- stop...",
    ):
        assert window.count(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        kept, _ = window.cut(text * 9)
        assert len(tokenizer(kept)["input_ids"]) <= 77


def test_two_hundred_thousand_pairs_take_seconds(root):
    n = 200_000
    columns = {name: [None] * n for name in schema.PAIRS.names} | {
        "words": [f"a product number {i // 20} of the shop with a rather long name" for i in range(n)],
        "query": ["something that users look for"] * n,
        "context": [f"a snowy day in the {i % 20} mountains" for i in range(n)],
    }
    pairs = pa.table(columns, schema.PAIRS)
    started = time.process_time()
    writer.Prompter(root, Prompting(), tokenizer_path=MODELS / "outpaint" / "tokenizer").write(pairs)
    assert time.process_time() - started < 10
