"""From a cohort and a product to text."""

from adbooster.contracts.text import clean

NEGATIVE_PROMPT = "people, person, face, hands, text, logo, watermark"


def prompt_qc(
    product: str, query: str, context: str, template: str = "{product}, {query}, {context}", palette: str = ""
) -> str:
    """The paper's z_QC: a plain concatenation; `product` is its caption without the photo's background, or its title.

    What is empty leaves no stray comma.
    """
    text = template.format(product=product, query=query, context=context, palette=palette)
    if product and query and context and palette:
        return text
    return ", ".join(part for part in (p.strip() for p in text.split(",")) if part)


def product_words(caption: str, title: str) -> str:
    """What the product is: the caption up to where it starts on the surroundings, or the title if there is no caption."""
    words = clean(caption).split()
    for i, word in enumerate(words):
        if i and word in ("on", "in", "at", "with", "against"):
            words = words[:i]
            break
    return " ".join(words) or clean(title)
