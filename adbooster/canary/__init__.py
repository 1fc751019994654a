"""New weights against the live ones on a fixed panel, before anything is painted with them.

Enters: two sets of weights. Leaves: a verdict with every figure in runs/<run_id>/canary.json, or CanaryRefused. Margins are
settings; figures come from the room measure.
"""

__all__ = ["checks", "config", "job"]
