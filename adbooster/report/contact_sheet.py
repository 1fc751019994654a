"""A contact sheet: the first creatives of a run on one picture, written while the night still paints."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.pictures import images
from adbooster.storage.objects import Root

TILE_PX, COLUMNS = 240, 4


def sheet_path(run_id: str) -> str:
    """Where a run's sheet is, relative to the root."""
    return f"runs/{run_id}/first.webp"


def write_contact_sheet(root: Root, run_id: str, rows: pa.Table, most: int = 12) -> str | None:
    """Write the painted creatives among `rows` (schema.STAGED), at most `most`, as a grid; returns its address.

    None, and nothing is written, where none is a painting.
    """
    painted = rows.filter(pc.and_(pc.is_null(rows["reject"]), pc.invert(pc.fill_null(rows["fallback"], True))))
    uris = painted["uri"].to_pylist()[:most]
    if not uris:
        return None
    tiles = [_tile(images.decode(root.read(uri))) for uri in uris]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % min(COLUMNS, len(tiles)))
    wide = min(COLUMNS, len(uris))
    grid = np.concatenate([np.concatenate(tiles[at : at + wide], 1) for at in range(0, len(tiles), wide)], 0)
    root.write(sheet_path(run_id), images.encode(grid, "webp", 85)[0])
    return f"{root.uri}/{sheet_path(run_id)}"


def _tile(picture_u8: np.ndarray) -> np.ndarray:
    """A picture fitted into a white square of TILE_PX."""
    high, wide = picture_u8.shape[:2]
    scale = TILE_PX / max(high, wide)
    small = images.resize(picture_u8, max(1, round(wide * scale)), max(1, round(high * scale)))
    tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    top, left = ((TILE_PX - n) // 2 for n in small.shape[:2])
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
