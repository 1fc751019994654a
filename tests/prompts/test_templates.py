import pytest

from adbooster.contracts import text
from adbooster.prompts import templates


def test_text_from_feeds_is_one_clean_line():
    assert text.clean("a\x00 \u202eshoe\n\tred  \u200b") == "a shoe red"


def test_interest_joins_what_is_there():
    assert text.interest("boots", "a snowy day") == "boots, a snowy day"
    assert text.interest("boots", "") == "boots"


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a running shoe on a white background", "a running shoe"),
        ("a pair of gloves at a halloween night", "a pair of gloves"),
        ("", "Title"),
        ("a mug", "a mug"),
    ],
)
def test_product_words_leave_the_surroundings(caption, words):
    assert templates.product_words(caption, "Title") == words


def test_z_qc_is_the_concatenation():
    assert templates.prompt_qc("a shoe", "boots", "snow") == "a shoe, boots, snow"
