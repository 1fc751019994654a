"""What a job did, on a terminal."""

from collections.abc import Iterator

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adbooster.contracts.evaluation import Evaluation, Experiment, Interval
from adbooster.report.uplift import percent


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """Scores by the judge, and the figures of what is live; no table where nothing was measured."""
    judged = [e for e in evaluation.experiments if e.scorer == "judge"]
    if judged:
        table = Table(
            *("creatives", "pick", "family", "n", "score", "on white", "own scene", "minus white", "minus scene")
        )
        table.title = "CLIP score by the judge, which never ranked, with 95 % intervals"
        for e in judged:
            table.add_row(*map(escape, _cells(e)))
        yield table
    own = [f for f in evaluation.figures if ": " not in f.name or f.name.startswith(("fallback: ", "reject: "))]
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


def print_summary(report: BaseModel) -> None:
    """What a job did, in a few lines on the terminal (stderr; stdout is for the report)."""
    console = Console(stderr=True)
    _print_counts(report.model_dump(), console)
    _print_evaluation(
        getattr(report, "evaluation", None) or getattr(getattr(report, "evaluate", None), "evaluation", None), console
    )


def _print_counts(report: dict, console: Console) -> None:
    uplift = (report.get("generate") or report).get("uplift")
    if uplift:
        table = Table(
            "family",
            "creatives",
            "CLIP score",
            "product on white",
            "uplift",
            title="Winners against the product on white",
        )
        for family, u in uplift.items():
            table.add_row(
                family,
                str(u["creatives"]),
                f"{u['clip_score']:.3f}",
                f"{u['neutral_score']:.3f}",
                percent(u["uplift_share"]),
            )
        console.print(table)
    painted = report.get("generate") or report
    if painted.get("left"):
        words = ", ".join(f"{n} {name}" for name, n in painted["left_by_value"].items())
        console.print(f"left for the next night by {painted['stopped']}: {painted['left']} requests ({words})")
    forbidden = painted.get("brand_rules") or {}
    if forbidden.get("pairs"):
        words = ", ".join(f"{n} {word}" for word, n in forbidden["rejects"].items() if n)
        console.print(f"forbidden by brand rules: {forbidden['pairs']} pairs ({words})", markup=False)
    for note in forbidden.get("notes", ()):
        console.print(note, markup=False, highlight=False)
    for name, channel in ((report.get("deliver") or report).get("channels") or {}).items():
        empty = "".join(f", {n} {word}" for word, n in channel["empty"].items())
        console.print(f"{name}: {channel['filled']} of {channel['wanted']} slots filled{empty}", markup=False)
    if report.get("gallery_uri"):
        console.print(f"report: {report['gallery_uri']}", soft_wrap=True)
    console.print(f"{report['job']} took {report['seconds']:.0f} s")


def _print_evaluation(evaluation: Evaluation | None, console: Console) -> None:
    for table in tables(evaluation) if evaluation else ():
        console.print(table)
    for note in evaluation.notes if evaluation else ():
        console.print(note, markup=False, highlight=False)
