import pyarrow as pa
import pytest

from adbooster.contracts.naming import bucket
from adbooster.storage.buckets import Spill, parts

FIELDS = pa.schema([("product_id", pa.string()), ("n", pa.int64())])


@pytest.fixture
def spill(tmp_path):
    """3,000 rows of 300 products, as they came in three tables."""
    spill = Spill(tmp_path / "spill", FIELDS)
    for start in range(0, 3000, 1000):
        numbers = range(start, start + 1000)
        spill.add(pa.table({"product_id": [f"P{n % 300}" for n in numbers], "n": list(numbers)}, FIELDS))
    spill.close()
    return spill


@pytest.mark.parametrize("most", [3000, 500, 10])  # one part, parts of several files, several parts of a file
def test_every_row_is_read_once_in_its_part(spill, most):
    read = []
    for part in parts(3000, most):
        rows = spill.read(part)
        assert rows.schema == FIELDS
        assert all(part.first <= bucket(name) < part.after for name in rows["product_id"].to_pylist())
        read += rows["n"].to_pylist()
    assert sorted(read) == list(range(3000))


def test_rows_of_a_product_stay_in_order(spill):
    for part in parts(3000, 500):
        rows = spill.read(part).to_pylist()
        for product in {row["product_id"] for row in rows}:
            numbers = [row["n"] for row in rows if row["product_id"] == product]
            assert numbers == sorted(numbers)


def test_nothing_spilled_is_no_rows(tmp_path):
    spill = Spill(tmp_path / "none", FIELDS)
    spill.add(FIELDS.empty_table())
    spill.close()
    assert spill.read(parts(0)[0]) == FIELDS.empty_table()
