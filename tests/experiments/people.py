"""Simulated people: outcomes of pairs whose click-through rates differ by product, cohort and pair."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from adbooster.contracts import schema

FIRST = date(2026, 11, 1)


def month(seed, products=24, cohorts=9, days=30, control=0.2, lift=0.0, spread=0.3, rate=0.03, shown=300):
    """Rows of schema.OUTCOMES, one a pair and day: some pairs keep the original, the others have `lift` more clicks."""
    random = np.random.default_rng(seed)
    product, cohort = (a.ravel() for a in np.meshgrid(np.arange(products), np.arange(cohorts), indexing="ij"))
    pairs = len(product)
    effects = random.normal(0, spread, products)[product] + random.normal(0, spread, cohorts)[cohort]
    original = random.random(pairs) < control
    rates = rate * np.exp(effects + random.normal(0, spread, pairs)) * np.where(original, 1, 1 + lift)
    impressions = random.poisson(np.tile(random.lognormal(0, 0.5, pairs) * shown, (days, 1)))
    clicks = random.binomial(impressions, np.clip(rates, 0, 1))
    return outcomes(
        creative_id=np.tile(
            np.array([f"{p}-{c}-{o}" for p, c, o in zip(product, cohort, original, strict=True)]), days
        ),
        product_id=np.tile(np.char.add("P", product.astype(str)), days),
        cohort_id=np.tile(np.char.add("c", cohort.astype(str)), days),
        family=np.tile(np.array(["seasons", "events", "sports"])[cohort % 3], days),
        control=np.tile(original, days),
        day=np.repeat(np.array([FIRST + timedelta(i) for i in range(days)]), pairs),
        impressions=impressions.ravel(),
        clicks=clicks.ravel(),
    )


def outcomes(**columns):
    """Rows of schema.OUTCOMES; what is not given is null, but for channel, placement, control, day and conversions."""
    n = len(columns["impressions"])
    given = {"channel": [""] * n, "placement": ["square"] * n, "control": [False] * n, "day": [FIRST] * n}
    given |= {"conversions": [0] * n} | columns
    wanted = pa.schema([f for f in schema.OUTCOMES if f.name in given])
    return schema.fill(pa.table({f.name: pa.array(given[f.name], f.type) for f in wanted}, wanted), schema.OUTCOMES)
