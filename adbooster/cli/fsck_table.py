"""The output of `adbooster fsck` on a terminal."""

from collections.abc import Iterator

from adbooster.contracts.text import clean
from adbooster.report.repair import PROBLEMS, Checked


def lines(done: Checked) -> Iterator[str]:
    """What was looked at, one line a kind of problem with its first findings, what was repaired and what is left."""
    rows = ", ".join(f"{n:,} of {name}" for name, n in done.rows.items()) or "none"
    yield f"{'live rows':>16}  {rows}"
    yield f"{'objects':>16}  {done.objects:,}, of which {done.hashed:,} were read ({done.sample:.1%} asked for)"
    if done.unnamed is not None:
        yield f"{'unnamed':>16}  {done.unnamed:,} that a vacuum would remove, {done.young:,} of the last day"
    for problem, count in done.problems.items():
        yield f"{problem:>16}  {count:,}: {PROBLEMS[problem]}"
    for f in done.findings:
        where = " ".join(part for part in (f.table, f.row, f.file) if part)
        yield f"{'':>16}  {f.problem}: {clean(where)}" + (f" ({clean(f.says)})" if f.says else "")
    if (more := sum(done.problems.values()) - len(done.findings)) > 0:
        yield f"{'':>16}  and {more:,} more"
    for what, count in done.repaired.items():
        yield f"{'repaired':>16}  {count:,} {what}"
    if done.repaint_in:
        yield f"{'to be painted':>16}  {done.repaint:,} requests, by the next night; they are listed in {done.repaint_in}"
    for line in done.left:
        yield f"{'left':>16}  {clean(line)}"
    if done.unchecked:
        yield f"{'not checked':>16}  run with --catalog NAME for: {', '.join(map(clean, done.unchecked))}"
    yield (
        "all of it holds"
        if done.clean
        else "it is not whole" + ("" if done.repaired else "; --repair mends what can be")
    )
