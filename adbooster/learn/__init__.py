"""Outcomes and marks to decisions: lift over held-out pairs, shares of variants and arms, what is retired, learned scores.

Enters: a file of outcomes, tables/shown, creatives, marks. Leaves: tables/outcomes, allocations, marks of what is retired, and
runs/<run_id>/learning.json. It paints nothing and withdraws nothing: generate and deliver act on what it decides.
"""

__all__ = ["checks", "config", "job"]
