import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from adbooster.cli import console
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import cell, text_of_cell
from adbooster.evaluate import blind_sheet
from adbooster.evaluate.config import Sheet
from adbooster.pictures import images
from adbooster.reward import sheets
from tests.pages import chromium

__all__ = ["chromium"]


def rows(root, n=20, text="a spooky night"):
    """n creatives, all red; the catalog's own scenes are blue and of another shape."""
    red, blue = (np.zeros((high, 64, 3), np.uint8) for high in (64, 32))
    red[..., 0], blue[..., 2] = 255, 255
    creative, scene = (root.put(images.encode_lossless(p), "webp") for p in (red, blue))
    names = [f"c{i:02d}" for i in range(n)]
    return [
        {"creative_id": c, "product_id": "p", "cohort_id": "k", "family": "events", "text": text}
        | {"uri": creative, "neutral_uris": [], "contextual_uris": [scene]}
        for c in names
    ]


def key_of(root):
    return json.loads(root.read("runs/r/blind.key.json"))


def test_pairs_stand_in_random_order_and_nothing_tells_which_is_which(root):
    assert blind_sheet.write(root, "runs/r/blind", rows(root), Sheet(pairs=16, side_px=64)) == 16
    key = key_of(root)
    assert {k["creative_side"] for k in key} == {"left", "right"}
    assert [k["creative_id"] for k in key] != sorted(k["creative_id"] for k in key)
    shown = {n: root.read(f"runs/r/blind/{n}").decode() for n in ("sheet.html", "sheet.csv")}
    for content in shown.values():
        assert not any(k["creative_id"] in content for k in key)
    for entry in key:
        for side in ("left", "right"):
            picture = images.decode(root.read(f"runs/r/blind/pictures/{entry['pair']:03d}-{side}.webp"))
            assert picture.shape == (64, 64, 3)
            red, _, blue = picture[32, 32].tolist()
            assert (red > blue) == (side == entry["creative_side"])
    assert root.names("runs/r/blind") == ["pictures", "sheet.csv", "sheet.html"]


def test_text_of_cohorts_is_escaped(root):
    blind_sheet.write(root, "runs/r/blind", rows(root, 1, "<script>alert(1)</script>"), Sheet(pairs=1, side_px=64))
    assert "<script>alert" not in root.read("runs/r/blind/sheet.html").decode()


def test_no_creative_makes_no_sheet(root):
    assert blind_sheet.write(root, "runs/r/blind", [], Sheet(pairs=5)) == 0
    assert not root.exists("runs/r/blind.key.json")


def key(n=30):
    shared = {"creative_id": "c", "product_id": "p", "cohort_id": "k"}
    return json.dumps(
        [
            shared
            | {"pair": i, "creative_side": "left" if i % 3 else "right", "family": "events" if i % 2 else "seasons"}
            | {"against": "contextual"}
            for i in range(1, n + 1)
        ]
    )


def filled(choose, n=30, rater="anna"):
    return "pair,rater,choice\n" + "".join(f"{i},{rater},{choose(i)}\n" for i in range(1, n + 1))


def side(i):
    return "left" if i % 3 else "right"


def other(i):
    return "right" if i % 3 else "left"


def test_a_sheet_is_scored_by_its_key():
    found = blind_sheet.score(
        {"a.csv": filled(lambda i: side(i) if i <= 20 else "same" if i <= 24 else other(i))}, key()
    )
    assert (found.answers, found.creative, found.baseline, found.same) == (30, 20, 6, 4)
    assert found.preferred.mean == pytest.approx(20 / 26)
    assert found.preferred.low > 0.5
    assert found.p_value == pytest.approx(0.0094, abs=1e-3)
    assert set(found.by_family) == {"events", "seasons"}


def test_several_raters_of_the_same_pairs_are_no_independent_answers():
    one = blind_sheet.score({"a": filled(lambda i: side(i) if i % 2 else other(i), rater="")}, key())
    many = blind_sheet.score(
        {f"r{r}": filled(lambda i: side(i) if i % 2 else other(i), rater="") for r in range(8)}, key()
    )
    assert (one.raters, many.raters, many.answers, many.pairs) == (1, 8, 240, 30)
    assert many.preferred.high - many.preferred.low > 0.3
    assert many.p_value == one.p_value


def test_an_empty_sheet_says_nothing():
    found = blind_sheet.score({"a": filled(lambda i: "")}, key())
    assert (found.answers, found.preferred, found.p_value) == (0, None, None)


@pytest.mark.parametrize(
    ("sheet", "said"),
    [
        ("pair,rater\n1,a\n", "lacks the column 'choice'"),
        ("pair,rater,choice\n1,a,maybe\n", "'maybe'"),
        ("pair,rater,choice\n99,a,left\n", "pair 99"),
        ("pair,rater,choice\n1,a,left\n1,a,right\n", "twice"),
        ("pair,rater,choice\n1,a,left\n\u00b2,a,left\n", "line 3, answers 'left' for pair"),
        ("pair,rater,choice\n" + "9" * 5000 + ",a,left\n", "answers 'left' for pair"),
        (f"pair,rater,choice\n1,{'a' * 101},left\n", "line 2: the rater 'aaa"),
        (f'pair,rater,choice\n1,"{"a" * 2_000_000}",left\n', "is not CSV that can be read"),
    ],
)
def test_a_sheet_that_cannot_be_scored_is_a_sentence(sheet, said):
    with pytest.raises(ConfigError, match=said):
        blind_sheet.score({"a": sheet}, key())


def test_the_console_scores_filled_sheets(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(filled(side))
    (tmp_path / "key.json").write_text(key())
    console.main(["blind", "score", str(tmp_path / "a.csv"), "--key", str(tmp_path / "key.json"), "--json"])
    assert json.loads(capsys.readouterr().out)["creative"] == 30
    with pytest.raises(SystemExit, match="2"):
        console.main(["blind", "score", str(tmp_path / "gone.csv"), "--key", str(tmp_path / "key.json")])
    assert "there is no file at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["=1+2", "@SUM(A1)", "+cmd|' /C calc'!A0", "-2+3", "\tx", "＝1", "'=1", "Anna", "-3", "'x"]
)
def test_a_name_is_no_formula_of_a_spreadsheet_and_comes_back(name):
    written = cell(name)
    assert not written.startswith(("=", "+", "@", "\t", "＝"))
    assert written == name or written == f"'{name}"
    assert text_of_cell(written) == name


def test_the_sheets_script_writes_cells_as_the_library_does(root, chromium):
    """The script of sheet.html quotes what a rater types as contracts.text.cell does, and the score undoes it."""
    (path := Path(root.uri) / "sheet.html").parent.mkdir(parents=True)
    path.write_text(blind_sheet._page([(1, "<script>document.title = 'ran'</script>"), (2, "a 'beach'")]))
    page = chromium.new_page()
    page.goto(path.as_uri())
    assert page.title() == "Side by side", "text of a cohort is text"
    for name in ("=1+2", "@x", "-2+3", "-3", "'=1", "Anna"):
        page.fill("[name=rater]", name)
        page.check("[name=p1][value=left]")
        with page.expect_download() as download:
            page.click("button")
        download.value.save_as(path.parent / "answers.csv")
        text = (path.parent / "answers.csv").read_text()
        assert next(csv.DictReader(io.StringIO(text)))["rater"] == cell(name)
        assert sheets.answers_of("answers.csv", text) == [(name, 1, "left")]
    page.close()
