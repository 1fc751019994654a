import itertools
import pickle

import pyarrow as pa
import pytest

from adbooster.contracts import errors, schema
from adbooster.contracts.errors import SchemaError


def test_check_names_the_missing_column():
    with pytest.raises(SchemaError, match="lacks the column 'caption'"):
        schema.check(schema.FETCHED.empty_table(), schema.CAPTIONED)


def test_check_names_the_wrong_type():
    table = pa.table({"cohort_id": [1]})
    with pytest.raises(SchemaError, match="'cohort_id' should be string and is int64"):
        schema.check(table, pa.schema([("cohort_id", pa.string())]))


def test_rows_only_grow_to_the_right_but_for_pixels_in_flight():
    chain = [schema.PICTURES, schema.PLANNED, schema.FETCHED, schema.SHRUNK, schema.CAPTIONED, schema.SEGMENTED]
    for before, after in itertools.pairwise([*chain, schema.MASKED, schema.JUDGED]):
        kept = {f.name for f in before if not pa.types.is_binary(f.type)}
        assert kept <= set(after.names) != set(before.names)
    assert not any(pa.types.is_binary(f.type) for f in schema.JUDGED)
    assert set(schema.SAMPLES.names) == set(schema.JUDGED.names) - {"known", "kept"} | {"retired_at", "bucket"}


def test_no_table_carries_pixels():
    for table in (schema.SAMPLES, schema.COHORTS, schema.CREATIVES):
        assert not any(pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type) for f in table)


@pytest.mark.parametrize("kind", [e for e in vars(errors).values() if isinstance(e, type)])
def test_errors_survive_the_trip(kind):
    back = pickle.loads(pickle.dumps(kind("one sentence")))
    assert type(back) is kind
    assert str(back) == "one sentence"
