"""An evaluation on a terminal."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from adbooster.evaluation import Evaluation, Experiment
from adbooster.intervals import Interval


def tables(found: Evaluation) -> Iterator[Table]:
    """Scores by the judge, and what CLIP does not see of what is live; nothing where nothing was measured."""
    judged = [e for e in found.experiments if e.scorer == "judge"]
    if judged:
        table = Table(
            *("creatives", "pick", "family", "n", "score", "on white", "own scene", "minus white", "minus scene")
        )
        table.title = "CLIP score by the judge, which never ranked, with 95 % intervals"
        for e in judged:
            table.add_row(*map(escape, _cells(e)))
        yield table
    own = [f for f in found.figures if ": " not in f.name or f.name.startswith(("fallback: ", "reject: "))]
    if own:
        table = Table("figure", "value", "95 % interval", "unit", "n", title="What is live")
        for f in own:
            value = "" if f.value is None else f"{f.value:.4g}"
            ends = "" if f.low is None else f"{f.low:.4g} to {f.high:.4g}"
            table.add_row(*map(escape, (f.name, value, ends, f.unit, str(f.n))))
        yield table


def _cells(e: Experiment) -> tuple[str, ...]:
    scene = "" if e.contextual is None else f"{e.contextual:.3f}"
    scores = (f"{e.creative:.3f}", f"{e.neutral:.3f}", scene)
    return (
        e.experiment,
        e.pick,
        e.family,
        str(e.n),
        *scores,
        _spread(e.difference_neutral),
        _spread(e.difference_contextual),
    )


def _spread(spread: Interval | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:+.3f}" + ("" if spread.low is None else f" ({spread.low:+.3f} to {spread.high:+.3f})")
