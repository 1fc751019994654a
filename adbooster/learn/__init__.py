"""Outcomes and marks to decisions: lift over held-out pairs, shares of variants and arms, what is retired, learned scores."""

__all__ = ["checks", "config", "job"]
