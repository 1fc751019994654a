"""One picture of what a root holds: `python -m adbooster.tiny.sheet <root_uri> <file>` puts live creatives in rows.

A row is a product: its photo, then its creatives by cohort. Product ids after the file choose the rows.
"""

import sys

from PIL import Image

from adbooster.pictures import images
from adbooster.storage import tables
from adbooster.storage.objects import Root

SIDE_PX, COLUMNS, ROWS = 224, 6, 6


def sheet(root: Root, products: list[str]) -> Image.Image:
    """The named products' photos and creatives (or the first ones), `SIDE_PX` each."""
    samples = {r["product_id"]: r for r in tables.read(root, "samples").to_pylist() if r["role"] == "main"}
    creatives = sorted(tables.read(root, "creatives").to_pylist(), key=lambda r: (r["product_id"], r["cohort_id"]))
    shown = products or sorted({r["product_id"] for r in creatives})[:ROWS]
    page = Image.new("RGB", (SIDE_PX * COLUMNS, SIDE_PX * len(shown)), "white")
    for y, product in enumerate(shown):
        uris = [samples[product]["photo_uri"], *(r["uri"] for r in creatives if r["product_id"] == product)]
        for x, uri in enumerate(uris[:COLUMNS]):
            picture = images.resize(images.decode(root.read(uri)), SIDE_PX, SIDE_PX)
            page.paste(Image.fromarray(picture), (x * SIDE_PX, y * SIDE_PX))
    return page


if __name__ == "__main__":
    sheet(Root(sys.argv[1]), sys.argv[3:]).save(sys.argv[2], quality=85, method=6)
