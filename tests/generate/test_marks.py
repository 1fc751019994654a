import json

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.generate import marks
from adbooster.generate.checks import check as check_generate
from adbooster.storage import tables
from tests.conftest import row, scan
from tests.generate.test_generate import config

HEX = "0123456789abcdef"


def creative(number: int, request="", **changes):
    told = {"creative_id": f"{number:016x}", "request_id": request or f"{number:064x}", "product_id": "P1"}
    told |= {"cohort_id": "c1", "placement": "square", "rank": 0, "sha256": f"{number + 500:064x}", "fallback": False}
    told |= {"text": "a beach", "photo_sha256": "f" * 64}
    return row(schema.CREATIVES, **told | changes)


def live(*rows):
    return pa.Table.from_pylist(list(rows), schema.CREATIVES)


def request(name: str, **changes):
    told = {"request_id": name, "product_id": "P1", "cohort_id": "c1", "placement": "square"}
    return row(schema.REQUESTS, **told | {"text": "a beach", "photo_sha256": "f" * 64, "round": 0} | changes)


def wanted(*rows):
    return pa.Table.from_pylist(list(rows), schema.REQUESTS)


def write(path, *said, **more):
    path.write_text(json.dumps({"format": marks.FORMAT, "marks": list(said)} | more))
    return str(path)


def mark(number: int, word: str, **more):
    return {"creative_id": f"{number:016x}", "mark": word} | more


def taken(root, path, *said, on=None, **options):
    return marks.read_and_store(root, write(path, *said), scan(on if on is not None else live()), "n", **options)


def test_a_rejected_creatives_request_gets_another_name_that_is_always_the_same(root, tmp_path):
    own = "a" * 64
    on = live(creative(1, own))
    said, figures = taken(root, tmp_path / "m.json", mark(1, "rejected"), on=on)
    named, effects = said.apply(wanted(request(own), request("b" * 64, cohort_id="c2")), on)
    names = named["request_id"].to_pylist()
    assert names[0] != own
    assert names[1] == "b" * 64
    assert (figures.rejected, effects.renamed, figures.unknown) == (1, 1, 0)
    # The next night, without the file: what was rejected is known, and the one painted in its place can be rejected too.
    on = live(creative(2, names[0]))
    later, _ = marks.read_and_store(root, "", scan(on), "n2")
    assert later.apply(wanted(request(own)), on)[0]["request_id"].to_pylist() == names[:1]
    both, _ = taken(root, tmp_path / "m.json", mark(2, "rejected"), on=on)
    third = both.apply(wanted(request(own)), on)[0]["request_id"].to_pylist()[0]
    assert third not in (own, names[0])
    # Taken back, both: the first name again.
    back, _ = taken(root, tmp_path / "m.json", mark(1, "cleared"), mark(2, "cleared"))
    assert back.apply(wanted(request(own)), live())[0]["request_id"].to_pylist() == [own]


def test_an_approved_creative_keeps_its_request_while_photo_and_cohort_are_the_same(root, tmp_path):
    on = live(creative(1, "a" * 64), creative(2, "b" * 64, cohort_id="c2"), creative(3, "c" * 64, cohort_id="c3"))
    said, figures = taken(root, tmp_path / "m.json", *(mark(i, "approved") for i in (1, 2, 3)), on=on)
    other_recipe = wanted(
        request("d" * 64),
        request("e" * 64, cohort_id="c2", text="a snowy day"),
        request("f" * 64, cohort_id="c3", photo_sha256="0" * 64),
    )
    found, effects = said.apply(other_recipe, on)
    assert found["request_id"].to_pylist() == ["a" * 64, "e" * 64, "f" * 64]
    assert (figures.approved, effects.held) == (3, 1)


def test_a_rejected_original_picture_does_not_come_back(root, tmp_path):
    on = live(creative(1, "a" * 64, fallback=True))
    said, _ = taken(root, tmp_path / "m.json", mark(1, "rejected"), on=on)
    name = said.apply(wanted(request("a" * 64)), on)[0]["request_id"][0].as_py()
    again = live(creative(7, name, sha256=f"{501:064x}", fallback=True), creative(8, "b" * 64, cohort_id="c2"))
    fresh, refused = said.refuse(again)
    assert fresh["creative_id"].to_pylist() == [f"{8:016x}"]
    marks.leave_empty(root, refused, said, "n")
    after, _ = marks.read_and_store(root, "", scan(live()), "n2")
    tried, effects = after.apply(wanted(request("a" * 64)), live())
    assert tried.num_rows == 0
    assert effects.left_empty == 1
    # Another recipe is another request: it is tried again.
    assert after.apply(wanted(request("9" * 64)), live())[0].num_rows == 1


def test_a_rejection_that_names_only_an_unknown_creative_is_counted_and_still_holds(root, tmp_path):
    said, figures = taken(root, tmp_path / "m.json", mark(1, "rejected"))
    assert (figures.unknown, figures.rejected) == (1, 1)
    fresh, refused = said.refuse(live(creative(1, "a" * 64)))
    assert fresh.num_rows == 0
    marks.leave_empty(root, refused, said, "n")
    after, _ = marks.read_and_store(root, "", scan(live()), "n2")
    assert after.apply(wanted(request("a" * 64)), live())[0]["request_id"].to_pylist() != ["a" * 64]


def test_a_dry_run_keeps_nothing_and_the_same_file_twice_is_one_commit(root, tmp_path):
    taken(root, tmp_path / "m.json", mark(1, "approved"), dry_run=True)
    assert tables.version(root, "marks") is None
    for _ in range(2):
        taken(root, tmp_path / "m.json", mark(1, "approved"))
    assert tables.version(root, "marks") == 0


def test_of_several_peoples_files_the_stronger_mark_holds(tmp_path):
    write(tmp_path / "anna.json", mark(1, "approved"), mark(2, "approved"))
    write(tmp_path / "ben.json", mark(1, "rejected"), mark(2, "cleared"))
    (tmp_path / "notes.txt").write_text("not a marks file")
    assert [(m.creative_id[-1], m.mark) for m in marks.read(str(tmp_path))] == [("1", "rejected"), ("2", "approved")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        ("[]", "valid dictionary"),
        ('{"format": "something", "marks": []}', "format 'something'"),
        ('{"format": "adbooster-marks-1"}', "marks"),
        (
            '{"format": "adbooster-marks-1", "marks": [{"creative_id": "x", "mark": "approved"}]}',
            "marks.0.creative_id 'x'",
        ),
        (
            '{"format": "adbooster-marks-1", "marks": [{"creative_id": "0123456789abcdef", "mark": "loved"}]}',
            "marks.0.mark 'loved'",
        ),
        (None, "there is no marks file at"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_before_anything_starts(stocked, tmp_path, text, said):
    path = tmp_path / "marks.json"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError, match=said):
        check_generate(config(stocked, marks_uri=str(path)))


def test_ranks_close_where_a_creative_was_rejected():
    rows = [creative(i, "a" * 64, rank=i) for i in (1, 2)]
    assert marks.close_ranks(live(*rows[::-1]))["rank"].to_pylist() == [1, 0]
