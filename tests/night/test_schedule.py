from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from adbooster.contracts import schema
from adbooster.night import schedule
from adbooster.night.config import Due
from adbooster.night.schedule import Trained
from adbooster.storage import tables
from tests.conftest import row


def scenes(root, **fingerprints):
    rows = [
        row(schema.SAMPLES, sample_id=name, product_id="P", role="lifestyle", background="scene", fingerprint=f)
        for name, f in fingerprints.items()
    ]
    rows = pa.Table.from_pylist(rows, schema.SAMPLES)
    tables.merge(root, "samples", rows, "sample_id", tables.version(root, "samples"), {})


def test_weights_are_remembered_with_what_they_were_trained_on(root):
    scenes(root, a="1", b="1", c="1", d="1")
    assert schedule.trained(root) is None
    schedule.remember(root, "n1", "r1")
    last = schedule.trained(root)
    assert last.weights == f"{root.uri}/weights/r1"
    assert last.scenes == dict.fromkeys("abcd", "1")
    scenes(root, a="2", e="1")
    assert schedule.changed_share(schedule._scenes(root), last.scenes) == 0.5
    schedule.remember(root, "n2", "r1")  # the same weights again: their date and their scenes stay
    assert schedule.trained(root) == last
    assert schedule.not_due(root, Due(rule="changed", share=0.5), last) is None
    assert (
        schedule.not_due(root, Due(rule="changed", share=0.6), last)
        == "50.0% of the scenes have changed, due from 60.0%"
    )


@pytest.mark.parametrize(
    ("rule", "age_days", "why"),
    [
        (Due(rule="never"), 100, "train.rule is never"),
        (Due(rule="always"), 0, None),
        (Due(rule="days", days=7), 7.5, None),
        (Due(rule="days", days=7), 2, "the last training is 2.0 days old, due after 7"),
    ],
)
def test_the_rule_decides(root, rule, age_days, why):
    last = Trained("w", datetime.now(UTC) - timedelta(days=age_days), {})
    assert schedule.not_due(root, rule, last) == why
    if rule.rule != "never":
        assert schedule.not_due(root, rule, None) is None
