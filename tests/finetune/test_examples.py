from itertools import islice

import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts.settings import Pool
from adbooster.finetune import examples
from adbooster.finetune.rows import PLANNED, SCENIC, arrays, drops_text
from adbooster.finetune.stages import Placer, Surveyor
from adbooster.pictures import cutouts
from tests.conftest import learning


def plan(scenes, **changes):
    return examples.Plan(examples.survey(scenes, examples.scenic_samples(scenes), Pool()), learning(scenes, **changes))


def test_examples_follow_from_seed_epoch_and_sample(scenes):
    """The same epoch gives the same pixels whatever else is in the table or the batch; another epoch or seed others."""
    two = plan(scenes, aspects=(1.0,))
    rows = examples.planned_rows(two, [(i, e) for e in (0, 1) for i in range(6)])
    placer = Placer(scenes, two.config)
    first = placer(rows).to_pylist()
    assert first == placer(rows).to_pylist()
    assert first[:3] == placer(rows.slice(0, 3)).to_pylist()
    assert all(a["image"] != b["image"] for a, b in zip(first[:6], first[6:], strict=True))
    assert all(a["noise_seed"] != b["noise_seed"] for a, b in zip(first[:6], first[6:], strict=True))
    other = Placer(scenes, learning(scenes, seed=1, aspects=(1.0,)))(rows).to_pylist()
    assert all(a["image"] != b["image"] for a, b in zip(first, other, strict=True))


def test_products_keep_their_size_and_stay_whole(scenes):
    placer = Placer(scenes, learning(scenes, aspects=(1.0,)))
    rows = examples.planned_rows(plan(scenes), [(i, e) for e in range(8) for i in range(6)])
    rows = rows.set_column(rows.schema.get_field_index("aspect"), "aspect", pa.array([1.0] * len(rows)))
    for example in placer(rows).to_pylist():
        mask = np.frombuffer(example["mask"], np.uint8).reshape(64, 64)
        ys, xs = np.nonzero(mask > cutouts.ON)
        assert 0.36 * 64 <= max(np.ptp(ys), np.ptp(xs)) + 1 <= 0.82 * 64


def test_a_batch_has_one_aspect_and_every_epoch_every_picture(scenes):
    some = list(islice(plan(scenes, batch=2).batches(), 60))
    assert {b.aspect for b in some} == {1.0, 0.8, 1.25}
    assert all(len(b.rows) == 2 for b in some)
    early = [(r, e) for b in some for r, e in zip(b.rows, b.epochs, strict=True) if e < 10]
    assert sorted(early) == [(r, e) for r in range(6) for e in range(10)]
    orders = [[r for r, e in early if e == epoch] for epoch in range(10)]
    assert len({tuple(o) for o in orders}) > 5


def test_a_photo_without_room_for_an_aspect_is_not_given_it(scenes):
    whole = plan(scenes)
    narrow = whole.rows.set_column(
        whole.rows.schema.get_field_index("longest_px"), "longest_px", pa.array([130] * 6, pa.int32())
    )
    some = islice(examples.Plan(narrow, learning(scenes, batch=1)).batches(), 40)
    assert {b.aspect for b in some} == {1.0}  # 130 of 160 px: even a square is tight, the others cut the product


def test_workers_share_a_step_and_a_resumed_run_sees_what_is_left(scenes):
    one = plan(scenes, workers=1, accumulate=2, batch=2, steps=6).of_worker(0, 0, 6).to_pylist()
    two = plan(scenes, workers=2, batch=2, steps=6)
    halves = [two.of_worker(rank, 0, 6).to_pylist() for rank in (0, 1)]
    batches = [halves[n % 2][n // 2 * 2 : n // 2 * 2 + 2] for n in range(12)]
    assert [row for b in batches for row in b] == one
    assert two.of_worker(1, 4, 6).to_pylist() == halves[1][8:]


def test_one_in_ten_has_no_text(scenes):
    config = learning(scenes)
    dropped = np.mean([drops_text(f"s{i}", e, config) for i in range(40) for e in range(50)])
    assert dropped == pytest.approx(0.1, abs=0.02)
    assert not any(drops_text(f"s{i}", 0, learning(scenes, empty_text_share=0.0)) for i in range(100))


def test_what_cannot_be_read_counts_for_nothing(scenes):
    rows = examples.planned_rows(plan(scenes, aspects=(1.0,)), [(i, 0) for i in range(3)])
    broken = rows.to_pylist()
    broken[1]["photo_uri"] = "objects/no/such.photo"
    placed = Placer(scenes, learning(scenes))(pa.Table.from_pylist(broken, PLANNED))
    assert placed["reject"].to_pylist() == [None, "unreadable", None]
    batch = arrays(placed)
    assert batch["weight"].tolist() == [1, 0, 1]
    assert batch["image"].shape == (3, 64, 64, 3)


def test_a_picture_without_a_mask_is_left_out(scenes):
    rows = examples.scenic_samples(scenes).to_pylist()
    rows[2]["mask_uri"] = "objects/no/such.png"
    found = Surveyor(scenes)(pa.Table.from_pylist(rows, SCENIC))
    assert found["reject"].to_pylist() == [None, None, "unreadable_mask", None, None, None]
    assert found["width_px"].to_pylist()[:2] == [160, 160]
