"""The first creatives of a run on one picture."""

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.report.contact_sheet import TILE_PX, sheet_path, write_contact_sheet
from tests.conftest import row


def staged(root, *colours, fallback=False):
    rows = []
    for i, colour in enumerate(colours):
        uri = root.put(images.encode_lossless(np.full((60, 100, 3), colour, np.uint8)), "webp")
        rows.append(row(schema.STAGED, creative_id=str(i), uri=uri, fallback=fallback))
    return pa.Table.from_pylist(rows, schema.STAGED)


def test_paintings_stand_in_a_grid_and_are_fitted(root):
    assert write_contact_sheet(root, "r", staged(root, 10, 60, 110, 160, 210)) == f"{root.uri}/{sheet_path('r')}"
    sheet = images.decode(root.read(sheet_path("r")))
    assert sheet.shape == (2 * TILE_PX, 4 * TILE_PX, 3)
    middles = [int(sheet[TILE_PX // 2, TILE_PX // 2 + i * TILE_PX, 0]) for i in range(4)]
    assert np.allclose(middles, [10, 60, 110, 160], atol=6)
    assert sheet[2, 2].min() > 240, "a picture that is not square stands on white"


def test_at_most_so_many(root):
    write_contact_sheet(root, "r", staged(root, *range(0, 60, 10)), most=2)
    assert images.decode(root.read(sheet_path("r"))).shape == (TILE_PX, 2 * TILE_PX, 3)


def test_without_a_painting_there_is_no_sheet(root):
    assert write_contact_sheet(root, "r", staged(root, 10, fallback=True)) is None
    assert not root.exists(sheet_path("r"))
