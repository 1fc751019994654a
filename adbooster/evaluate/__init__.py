"""Creatives to what they are worth: the paper's table, figures with intervals, outcomes, a blind sheet for people.

Enters: tables/creatives, trials, outcomes. Leaves: runs/<run_id>/evaluation.json, the page with its results, retire.json.
It publishes nothing and changes nothing that is live.
"""

__all__ = ["blind_sheet", "checks", "config", "job"]
