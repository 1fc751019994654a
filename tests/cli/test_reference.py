"""docs/settings.md and docs/tables.md say what the code says."""

from pathlib import Path

from adbooster.cli.reference import settings_page, tables_page
from adbooster.contracts import schema

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_current():
    assert (DOCS / "settings.md").read_text() == settings_page(), "run `make docs`"
    assert (DOCS / "tables.md").read_text() == tables_page(), "run `make docs`"


def test_every_setting_has_a_meaning_and_every_link_a_section():
    page = settings_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if row.endswith("|  |")]
    sections = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    linked = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert linked <= sections


def test_columns_and_reject_words_are_there():
    page = tables_page()
    assert all(f"| `{field.name}` |" in page for field in schema.CREATIVES)
    assert all(f"`{word}`" in page for word in schema.REJECTS)
    assert "of all the round's candidates" in page
