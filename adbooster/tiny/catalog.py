"""Write the tiny world's catalog: `python -m adbooster.tiny.catalog` makes `catalog/feed.tsv` and its pictures again."""

import csv
import sys
from pathlib import Path

from PIL import Image

from adbooster.tiny import world

FOLDER = Path(__file__).parent / "catalog"
SIDE_PX = 512
FIRST_SEED = 10**6  # training uses smaller ones
SCENES_EACH = 2
BRANDS = ("Aurora", "Bluefin", "Cedar & Co", "Dune", "Elmwood", "Fjord")
COLUMNS = [
    "id",
    "title",
    "description",
    "link",
    "image_link",
    "lifestyle_image_link",
    "availability",
    "price",
    "brand",
    "google_product_category",
]


def write(folder: Path) -> None:
    """The feed in Google Merchant's tab-delimited form, one packshot and two lifestyle pictures a product."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "feed.tsv").open("w", newline="") as f:
        feed = csv.DictWriter(f, COLUMNS, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
        feed.writeheader()
        for number, product in enumerate(world.PRODUCTS.values()):
            feed.writerow(_row(folder, number, product))


def _row(folder: Path, number: int, product: world.Product) -> dict[str, str]:
    scenes = list(world.SCENES)
    packshot, _ = world.packshot(product.key, SIDE_PX)
    Image.fromarray(packshot).save(folder / f"images/{product.key}.webp", lossless=True, quality=100, method=6)
    lifestyle = []
    for i in range(SCENES_EACH):
        scene = scenes[(number * SCENES_EACH + i * 7) % len(scenes)]
        picture, _ = world.compose(scene, product.key, SIDE_PX, FIRST_SEED + number * SCENES_EACH + i)
        lifestyle.append(f"images/{product.key}-{scene}.webp")
        Image.fromarray(picture).save(folder / lifestyle[-1], quality=92, method=6)
    brand = BRANDS[number % len(BRANDS)]
    return {
        "id": f"TINY-{number + 1:03d}",
        "title": f"{brand} {product.name.removeprefix('pair of ')}",
        "description": f"A {product.name} by {brand}, photographed for the tiny world.",
        "link": f"https://shop.example/{product.key}",
        "image_link": f"images/{product.key}.webp",
        "lifestyle_image_link": ",".join(lifestyle),
        "availability": "in_stock",
        "price": f"{19 + 7 * number}.00 EUR",
        "brand": brand,
        "google_product_category": product.category,
    }


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
