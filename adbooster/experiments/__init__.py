"""Who is shown what, and what it brought: held-out pairs, arms, allocation among variants, outcomes, and the lift over originals.

Enters: outcomes of people as aggregates (tables/outcomes). Leaves: probabilities with which variants and arms are shown
(tables/allocations), and intervals that hold however often they are looked at.
"""

__all__ = [
    "allocation",
    "arms",
    "config",
    "groups",
    "holdout",
    "lift",
    "outcomes",
    "prompter",
    "robots",
    "shown",
    "variants",
    "withdrawn",
]
