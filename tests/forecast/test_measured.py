"""Figures that a test can measure again: bytes of a row of tables/creatives, and what S3 is asked for."""

from collections import Counter

import aiobotocore.client
import numpy as np
import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.forecast.figures import gather
from adbooster.forecast.forecast import PER_CREATIVE, PER_OWN_PICTURE, PER_PRODUCT
from adbooster.painting.finish import Finisher
from adbooster.painting.painter import Painter
from adbooster.painting.placing import Placer
from adbooster.storage import tables
from adbooster.storage.objects import Root
from tests.benchmarks.generate import CHEAP, config, planned, stock


def creatives(n: int) -> pa.Table:
    """Rows whose hashes, scores and figures are all different, as those of a shop are: six cohorts a product."""
    rng = np.random.default_rng(0)
    product = np.repeat(np.arange(n // 6), 6)

    def hashes(digits: int) -> pa.Array:
        return pa.array([rng.bytes(digits // 2).hex() for _ in range(n)])

    def figures(struct: pa.StructType) -> pa.Array:
        kinds = [(f.name, f.type) for f in struct]
        columns = [
            pa.array(rng.random(n).astype(np.float32) if pa.types.is_floating(kind) else np.zeros(n, np.int32)).cast(
                kind
            )
            for _, kind in kinds
        ]
        return pa.StructArray.from_arrays(columns, names=[name for name, _ in kinds])

    values = {name: hashes(64) for name in ("request_id", "photo_sha256", "sha256", "background_simhash")}
    values |= {name: hashes(16) for name in ("creative_id", "background_phash")}
    values |= {name: rng.random(n).astype(np.float32) for name in ("clip_score", "neutral_score", "margin", "gpu_s")}
    values |= {"gates": figures(schema.GATES), "light": figures(schema.LIGHT)}
    values |= {"product_id": [f"p{i:07d}" for i in product], "cohort_id": [f"c{i % 30}" for i in range(n)]}
    values |= {"prompt": [f"product {p} on the ground, hiking in the snow {i % 30}" for i, p in enumerate(product)]}
    values |= {"seed": rng.integers(0, 2**62, n), "size_bytes": rng.integers(3e5, 9e5, n)}
    boxes = [pa.array(rng.integers(0, 1080, n).astype(np.int32)) for _ in schema.LAYOUT]
    values |= {"layout": pa.StructArray.from_arrays(boxes, names=[f.name for f in schema.LAYOUT])}
    values |= {"candidate_scores": list(rng.random((n, 4)).astype(np.float32))}
    values |= {"uri": [f"objects/{h[:2]}/{h}.webp" for h in hashes(64).to_pylist()], "run_id": ["20261127-010000"] * n}
    columns = [pa.array(values[f.name], f.type) if f.name in values else pa.nulls(n, f.type) for f in schema.CREATIVES]
    return pa.table(columns, schema=schema.CREATIVES)


def test_bytes_of_a_row_of_creatives(root, tmp_path):
    tables.merge(root, "creatives", creatives(30_000), "creative_id", None, {})
    found = sum(path.stat().st_size for path in (tmp_path / "root").rglob("*.parquet")) / 30_000
    print(f"{found:.0f} bytes a row")
    figures, _ = gather("h100", "sd15", False, "jpeg")
    assert found == pytest.approx(figures["row_bytes"].value, rel=0.15)


def test_s3_is_asked_no_more_than_the_forecast_says(s3_root, monkeypatch):
    sent: Counter[str] = Counter()
    call = aiobotocore.client.AioBaseClient._make_api_call

    async def counted(self, operation, *rest, **more):
        sent[operation.removesuffix("Object").removesuffix("ObjectsV2").upper()] += 1
        return await call(self, operation, *rest, **more)

    monkeypatch.setattr(aiobotocore.client.AioBaseClient, "_make_api_call", counted)
    root = Root(s3_root)
    stock(root, 3, 2, 128)
    settings, rows = config(root, CHEAP), planned(root, CHEAP)
    place, paint = Placer(root, settings), Painter(settings)
    finish = Finisher(root, settings, "recipe", "weights")
    sent.clear()
    placed = place(rows)
    assert sent == Counter({kind: 3 * (n + PER_OWN_PICTURE[kind]) for kind, n in PER_PRODUCT.items()})
    sent.clear()
    done = finish(paint(placed))
    assert done.num_rows == 6
    assert sent.keys() == PER_CREATIVE.keys()
    assert all(n <= 6 * PER_CREATIVE[kind] for kind, n in sent.items())
    assert (sent["PUT"], sent["LIST"]) == (6, 6)
