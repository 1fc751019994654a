"""Small creatives for tests of delivery: a scene of noise and colour with a product of its own colours in it."""

import hashlib
import zlib

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema
from adbooster.pictures import images
from adbooster.pictures.layout import Box
from adbooster.storage import tables
from tests.conftest import row


def scene(wide: int, high: int, seed: int = 0) -> np.ndarray:
    """A smooth scene with some noise, uint8 [high,wide,3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    noise = rng.integers(0, 8, (high, wide, 3), np.uint8)
    return np.asarray(images.resize(coarse, wide, high, bicubic=True)) // 2 + 60 + noise


def master(box: Box, wide: int = 240, high: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(creative uint8 [high,wide,3], product's photo mask uint8): a disc of stripes in `box`."""
    picture = scene(wide, high, seed)
    ys, xs = np.mgrid[: box.height_px, : box.width_px]
    disc = ((xs - box.width_px / 2 + 0.5) / box.width_px) ** 2 + ((ys - box.height_px / 2 + 0.5) / box.height_px) ** 2
    inside = disc <= 0.25
    inside[0, box.width_px // 2] = inside[-1, box.width_px // 2] = True
    inside[box.height_px // 2, 0] = inside[box.height_px // 2, -1] = True
    stripes = np.where((xs // 6 % 2)[..., None] == 0, np.array([200, 40, 30]), np.array([240, 220, 60]))
    picture[box.slices][inside] = stripes[inside]
    return picture, np.where(inside, 255, 0).astype(np.uint8)


BOX = Box(80, 90, 80, 100)


def publish(
    root, products=("P1",), cohorts=("c1",), placement="square", size=(240, 240), box=BOX, base=None, **changes
):
    """Samples and live creatives, one a product and cohort; returns the creatives' rows."""
    samples, creatives = [], []
    for i, product in enumerate(products):
        around = master(BOX, seed=zlib.crc32(product.encode()))[0]  # as it stands in creatives with the box BOX
        photo = images.encode_lossless(np.ascontiguousarray(around[BOX.slices]))
        photo_sha256 = hashlib.sha256(photo).hexdigest()
        for j, cohort in enumerate(cohorts):
            picture, mask = master(box, *size, seed=100 * i + j)
            content = images.encode_lossless(picture)
            creative = row(
                schema.CREATIVES,
                creative_id=hashlib.sha256(f"{product} {cohort} {placement}".encode()).hexdigest()[:16],
                request_id=hashlib.sha256(f"r {product} {cohort} {placement}".encode()).hexdigest(),
                product_id=product,
                cohort_id=cohort,
                placement=placement,
                rank=0,
                prompt=f"a scene for {cohort}",
                photo_sha256=photo_sha256,
                layout=vars(box),
                weights_revision="w1",
                clip_score=0.5 - 0.01 * j,
                fallback=False,
                uri=root.put(content, "webp"),
                sha256=hashlib.sha256(content).hexdigest(),
                width=size[0],
                height=size[1],
                size_bytes=len(content),
                run_id="n1",
            )
            creatives.append(creative | changes)
        sample = {"sample_id": f"s {product}", "product_id": product, "role": "main", "title": f"The {product}"}
        sample |= {"photo_sha256": photo_sha256, "mask_uri": root.put(images.encode_mask(mask), "png"), "brand": "B"}
        sample["photo_uri"] = root.put(photo, "photo")
        samples.append(row(schema.SAMPLES, **sample))
    version = tables.version(root, "samples")
    tables.merge(root, "samples", pa.Table.from_pylist(samples, schema.SAMPLES), "sample_id", version, {})
    rows = pa.Table.from_pylist(creatives, schema.CREATIVES)
    tables.merge(root, "creatives", rows, "creative_id", tables.version(root, "creatives"), {})
    return creatives
