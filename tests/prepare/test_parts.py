"""A catalog that is prepared in several parts comes out as one that is prepared whole."""

import shutil

import pytest

from adbooster.contracts.errors import TooManyRejects
from adbooster.prepare import plan
from adbooster.prepare.job import prepare
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.prepare.test_prepare import config, samples

HEAD = "id\ttitle\timage_link\n"
NAMED = "".join(f"P{n}\tProduct {n}\t\n" for n in range(30))
UNNAMED = "".join(f"\tno id {n}\tx.png\n" for n in range(10))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(plan, "PART_PICTURES", 4)


def rows(root) -> list[dict]:
    return sorted(tables.read(root, "samples").to_pylist(), key=lambda row: row["sample_id"])


def test_rows_without_an_id_change_parts_and_stay_one_row(warm_ray, small_parts, root, tiny_feed):
    """Their product_id is their number in the feed, and a product falls into a part by its id."""
    tiny_feed.write_text(HEAD + NAMED + UNNAMED)
    every = {"max_reject_share": 1}
    first = prepare(config(root, tiny_feed, **every))
    assert (first.pictures, first.new, first.rejects) == (40, 40, {"missing_image": 30, "missing_id": 10})
    before = rows(root)
    assert len({row["bucket"] // 4096 for row in before}) > 8, "they lie in many parts"

    tiny_feed.write_text(HEAD + "A\tAnother\t\n" + NAMED + UNNAMED)
    second = prepare(config(root, tiny_feed, run_id="r2", **every))
    assert (second.new, second.changed, second.unchanged, second.retired) == (1, 10, 30, 0)
    after = rows(root)
    assert len(after) == 41
    assert {row["sample_id"] for row in before} < {row["sample_id"] for row in after}
    assert {row["product_id"] for row in after if row["reject"] == "missing_id"} == {
        f"(row {n})" for n in range(32, 42)
    }

    again = prepare(config(root, tiny_feed, run_id="r3", **every))
    assert (again.new_or_changed, again.unchanged, again.samples_version) == (0, 41, second.samples_version)


def test_all_parts_are_one_commit_and_are_judged_together(warm_ray, small_parts, root, tiny_feed):
    tiny_feed.write_text(HEAD + NAMED)
    with pytest.raises(TooManyRejects, match="30 of 30 pictures were rejected"):
        prepare(config(root, tiny_feed))
    assert tables.version(root, "samples") is None
    first = prepare(config(root, tiny_feed, run_id="r2", max_reject_share=1))
    assert len(tables.history(root, "samples")) == 1

    tiny_feed.write_text(HEAD + "".join(NAMED.splitlines(keepends=True)[:20]))
    second = prepare(config(root, tiny_feed, run_id="r3", max_reject_share=1))
    assert (second.retired, second.samples_version) == (10, (first.samples_version or 0) + 1)
    assert sum(row["retired_at"] is not None for row in rows(root)) == 10


def test_photos_of_several_parts_and_what_a_killed_run_staged_of_them(warm_ray, monkeypatch, root, tiny_feed, tmp_path):
    monkeypatch.setattr(plan, "PART_PICTURES", 2)
    first = prepare(config(root, tiny_feed))
    assert (first.new, first.rejects) == (4, {})
    no_models = {"device": "cuda"}  # whoever needs one fails
    again = prepare(config(root, tiny_feed, run_id="r2", **no_models))
    assert (again.new_or_changed, again.unchanged, again.samples_version) == (0, 4, first.samples_version)

    killed = Root(str(tmp_path / "killed"))  # as if `r1` had ended before its commit
    for folder in ("objects", "runs/r1"):
        shutil.copytree(root.path(folder), killed.path(folder))
    next_run = prepare(config(killed, tiny_feed, run_id="r2", **no_models))
    assert (next_run.new, next_run.taken_over) == (4, 4)
    assert samples(killed) == samples(root)
