"""The output of `adbooster inspect` on a terminal."""

from collections.abc import Iterator

from adbooster.cli import audit_table
from adbooster.contracts.text import clean
from adbooster.report.inspect import Inspection

VERDICTS = {True: "holds", False: "FAILS", None: "-"}


def lines(found: Inspection) -> Iterator[str]:
    """What it is, what it says of itself, what the tables say of it, and one line a check; texts without control characters."""
    size = f", {found.width_px} x {found.height_px} {found.format}, {found.size_bytes} bytes" if found.format else ""
    yield f"{clean(found.given)}: {found.what}{size}"
    if found.sha256:
        yield f"{'sha256':>11}  {found.sha256}"
    for row in found.delivered:
        yield f"{'delivered':>11}  " + ", ".join(f"{n} {clean(str(v))}" for n, v in row.items() if v is not None)
    for name, text in found.xmp.items():
        yield f"{'xmp':>11}  {name} {clean(text)}"
    if found.credentials:
        said = found.credentials.model_dump(exclude_none=True)
        parts = {n: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for n, v in said.items()}
        yield f"{'c2pa':>11}  " + "; ".join(f"{n} {clean(v)}" for n, v in parts.items() if v)
    if found.creative:
        yield from (f"  {line}" for line in audit_table.lines(found.creative))
    for check in found.checks:
        yield f"{check.name:>11}  {VERDICTS[check.holds]}: {clean(check.says)}"
    failed = ", ".join(check.name for check in found.checks if check.holds is False)
    yield "all of it holds" if found.holds else f"it does not hold: {failed}"
