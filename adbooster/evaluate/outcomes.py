"""What users did: click-through by creative and cohort, whether the CLIP margin predicts it, and what to retire."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from adbooster.contracts.evaluation import Figure, Interval
from adbooster.contracts.text import clean
from adbooster.evaluate.config import Outcomes
from adbooster.experiments.outcomes import COUNTS, possible
from adbooster.measure import intervals


class CreativeOutcome(BaseModel):
    """One creative's days together."""

    creative_id: str
    request_id: str
    product_id: str
    cohort_id: str
    placement: str
    sha256: str
    days: int
    impressions: int
    clicks: int
    conversions: int
    ctr: Interval
    """clicks / impressions, Wilson"""
    others_ctr: float | None
    """of its cohort's other creatives together; null where none was shown"""
    margin: float
    fallback: bool
    retire: bool


class OutcomesReport(BaseModel):
    """Outcomes joined to what is live."""

    rows: int
    live: int
    """rows of creatives that are live"""
    unknown: int
    """rows of other creative ids: retired since, or of another catalog"""
    unknown_examples: list[str]
    broken: int
    """rows left out: no id or day, counts below 0 or beyond MAX_COUNT, or more clicks than impressions"""
    duplicates: int
    """rows left out: a creative, day and channel that occurs earlier in the file"""
    cohorts: dict[str, Interval]
    """click-through rate by cohort"""
    margin_correlation: Interval | None
    """Spearman, click-through rate relative to the cohort's against the CLIP margin, painted creatives only"""
    creatives: list[CreativeOutcome]


def join(table: pa.Table, creatives: pa.Table, settings: Outcomes) -> OutcomesReport:
    """Outcomes (experiments.outcomes.COLUMNS) joined to live creatives (schema.CREATIVES)."""
    valid, broken, duplicates = _valid_rows(table)
    known = pc.is_in(valid["creative_id"], creatives["creative_id"].combine_chunks())
    unknown, valid = valid.filter(pc.invert(known)), valid.filter(known)
    sums = valid.group_by("creative_id").aggregate([("day", "count_distinct"), *((c, "sum") for c in COUNTS)])
    total = {row["creative_id"]: row for row in sums.to_pylist() if row["impressions_sum"]}
    columns = ["creative_id", "request_id", "product_id", "cohort_id", "placement", "sha256", "margin", "fallback"]
    shown = [r for r in creatives.select(columns).to_pylist() if r["creative_id"] in total]
    of_cohort: dict[str, np.ndarray] = {}
    for row in shown:
        sums_of = total[row["creative_id"]]
        counts = np.array([sums_of["impressions_sum"], sums_of["clicks_sum"]])
        of_cohort[row["cohort_id"]] = of_cohort.get(row["cohort_id"], np.zeros(2, int)) + counts
    joined = [_outcome(r, total[r["creative_id"]], of_cohort[r["cohort_id"]], settings) for r in shown]
    return OutcomesReport(
        rows=table.num_rows,
        live=valid.num_rows,
        unknown=unknown.num_rows,
        unknown_examples=[clean(name[:40]) for name in sorted(set(unknown["creative_id"].to_pylist()))[:5]],
        broken=broken,
        duplicates=duplicates,
        cohorts={name: intervals.share(int(c), int(n)) for name, (n, c) in sorted(of_cohort.items())},
        margin_correlation=_margin_correlation(joined, of_cohort, settings.min_impressions),
        creatives=sorted(joined, key=lambda c: c.creative_id),
    )


def _valid_rows(table: pa.Table) -> tuple[pa.Table, int, int]:
    """Valid rows, the number of invalid ones, and the number of repeated ones."""
    valid = possible(table)
    kept = table.filter(pa.array(valid))
    rows = list(zip(*(kept[name].to_pylist() for name in ("creative_id", "day", "channel")), strict=True))
    first = {}
    for i, key in enumerate(rows):
        first.setdefault(key, i)
    return kept.take(pa.array(list(first.values()), pa.int64())), int((~valid).sum()), len(rows) - len(first)


def _outcome(row: dict, sums: dict, cohort: np.ndarray, settings: Outcomes) -> CreativeOutcome:
    impressions, clicks = sums["impressions_sum"], sums["clicks_sum"]
    others = cohort - [impressions, clicks]
    others_ctr = float(others[1] / others[0]) if others[0] else None
    ctr = intervals.share(clicks, impressions)
    often = impressions >= settings.min_impressions
    high = ctr.mean if ctr.high is None else ctr.high
    retire = often and others_ctr is not None and high < settings.retire_below * others_ctr
    return CreativeOutcome(
        **row,
        days=sums["day_count_distinct"],
        impressions=impressions,
        clicks=clicks,
        conversions=sums["conversions_sum"],
        ctr=ctr,
        others_ctr=others_ctr,
        retire=retire,
    )


def _margin_correlation(joined: list[CreativeOutcome], cohorts: dict[str, np.ndarray], least: int) -> Interval | None:
    """Of the margin with click-through rates relative to the cohort's, as some users click more on anything."""
    some = [c for c in joined if c.impressions >= least and not c.fallback and cohorts[c.cohort_id][1]]
    rates = [c.ctr.mean / float(np.divide(*cohorts[c.cohort_id][::-1])) for c in some]
    return intervals.correlation(np.array([c.margin for c in some]), np.array(rates))


def marks(report: OutcomesReport) -> dict:
    """The creatives to retire as a file of marks, in the format of people's rejections, which `generate` reads."""
    names = ("creative_id", "request_id", "product_id", "cohort_id", "placement", "sha256")
    retired = [c.model_dump(include=set(names)) for c in report.creatives if c.retire]
    return {"format": "adbooster-marks-1", "by": "jobs.evaluate", "marks": [c | {"mark": "rejected"} for c in retired]}


def figures(report: OutcomesReport, settings: Outcomes) -> list[Figure]:
    """The click-through rate of each cohort, the correlation, and how many to retire."""
    shown: dict[str, int] = {}
    for c in report.creatives:
        shown[c.cohort_id] = shown.get(c.cohort_id, 0) + c.impressions
    out = [
        _figure(f"ctr of cohort {name}", "share", shown[name], ctr, "clicks an impression, n impressions; Wilson")
        for name, ctr in report.cohorts.items()
    ]
    if spread := report.margin_correlation:
        n = sum(c.impressions >= settings.min_impressions and not c.fallback for c in report.creatives)
        meaning = "of click-through rate (relative to its cohort's) and CLIP margin over painted creatives"
        out.append(_figure("ctr_margin_correlation", "Spearman", n, spread, meaning))
    retired = float(sum(c.retire for c in report.creatives))
    meaning = f"creatives surely below {settings.retire_below:g} of their cohort's click-through rate"
    shown_n = len(report.creatives)
    return [*out, Figure(name="to_retire", unit="creatives", n=shown_n, value=retired, meaning=meaning)]


def _figure(name: str, unit: str, n: int, spread: Interval, meaning: str) -> Figure:
    return Figure(name=name, unit=unit, n=n, value=spread.mean, low=spread.low, high=spread.high, meaning=meaning)
