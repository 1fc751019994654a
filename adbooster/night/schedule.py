"""When fine-tuning is due, and which weights the catalog is painted with until it is."""

import io
import json
from datetime import UTC, datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pap

from adbooster.night.config import Due
from adbooster.storage import tables
from adbooster.storage.objects import ACCEPTED, Root


class Trained(NamedTuple):
    """The weights that a night accepted last."""

    weights: str
    at: datetime
    scenes: dict[str, str]
    """fingerprint by sample_id, of what they were trained on"""


def trained(root: Root) -> Trained | None:
    """None if no night has fine-tuned below this root."""
    try:
        latest = json.loads(root.read(ACCEPTED))
        rows = pap.read_table(io.BytesIO(root.read(latest["trained_on"])))
    except FileNotFoundError:
        return None
    scenes = dict(zip(*(rows[n].to_pylist() for n in ("sample_id", "fingerprint")), strict=True))
    return Trained(root.address(latest["weights"]), datetime.fromisoformat(latest["trained_at"]), scenes)


def not_due(root: Root, due: Due, last: Trained | None) -> str | None:
    """Why fine-tuning is not due; None if it is."""
    if due.rule == "never":
        return "train.rule is never"
    if due.rule == "always" or last is None:
        return None
    if due.rule == "days":
        age = (datetime.now(UTC) - last.at).total_seconds() / 86400
        return None if age >= due.days else f"the last training is {age:.1f} days old, due after {due.days:g}"
    share = changed_share(_scenes(root), last.scenes)
    return None if share >= due.share else f"{share:.1%} of the scenes have changed, due from {due.share:.1%}"


def changed_share(now: dict[str, str], then: dict[str, str]) -> float:
    """Scenes that are new, changed or gone, over those of `then`; at most 1."""
    differing = sum(now.get(name) != then.get(name) for name in now.keys() | then.keys())
    return min(1.0, differing / max(1, len(then)))


def remember(root: Root, run_id: str, revision: str) -> None:
    """These weights are what the catalog is painted with from now on; the same as before keep their date."""
    known = json.loads(root.read(ACCEPTED)) if root.exists(ACCEPTED) else {}
    if known.get("weights") == f"weights/{revision}":
        return
    now = _scenes(root)
    buffer = pa.BufferOutputStream()
    pap.write_table(pa.table({"sample_id": list(now), "fingerprint": list(now.values())}), buffer)
    trained_on = f"runs/{run_id}/trained-on.parquet"
    root.write(trained_on, buffer.getvalue().to_pybytes())
    at = datetime.now(UTC).isoformat(timespec="seconds")
    root.write_json(
        ACCEPTED, {"weights": f"weights/{revision}", "trained_at": at, "run_id": run_id, "trained_on": trained_on}
    )


def _scenes(root: Root) -> dict[str, str]:
    """Fingerprint by sample_id of usable pictures that show a product in a scene."""
    rows = tables.read(root, "samples", ["sample_id", "fingerprint", "background", "reject", "retired_at"])
    usable = pc.and_(pc.is_null(rows["reject"]), pc.is_null(rows["retired_at"]))
    rows = rows.filter(pc.and_(usable, pc.equal(rows["background"], "scene")))
    return dict(zip(rows["sample_id"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))
