"""Clicks that people can have made: robots click one creative hundreds of times and would decide what is shown."""

import numpy as np
import pyarrow as pa

from adbooster.experiments.groups import codes

_IMPRESSIONS_OF_ALL = 1000.0  # as which the rate of all counts in a family's
_ROUNDS = 5  # a rate that robots have raised falls with every round in which their clicks are left out


def human_clicks(outcomes: pa.Table, factor: float) -> np.ndarray:
    """Clicks of each row that are counted (int64 [n]).

    outcomes  creative_id, family, impressions, clicks; a row a creative, day and channel
    factor    a row with more than so many times the clicks that the other creatives of the family would have got, and
              three standard deviations of Poisson and three clicks more, is no people's: it is counted as theirs would be,
              so that robots neither raise nor lower what they click
    """
    shown = outcomes["impressions"].to_numpy().astype(np.float64)
    clicks = outcomes["clicks"].to_numpy().astype(np.int64)
    if not len(clicks):
        return clicks
    creative, family = codes(outcomes["creative_id"]), codes(outcomes["family"])
    both = codes(outcomes["creative_id"], outcomes["family"])
    others_shown = _without(shown, family, both)
    outside_shown = _without(shown, np.zeros_like(creative), creative)
    counted = clicks
    for _ in range(_ROUNDS):
        outside = _without(counted, np.zeros_like(creative), creative) / np.maximum(outside_shown, 1)
        rate = (_without(counted, family, both) + outside * _IMPRESSIONS_OF_ALL) / (others_shown + _IMPRESSIONS_OF_ALL)
        usual = rate * shown
        most = factor * usual
        after = np.where(clicks > most + 3 * np.sqrt(most) + 3, np.round(usual).astype(np.int64), clicks)
        if (after == counted).all():
            break
        counted = after
    return counted


def _without(values: np.ndarray, group: np.ndarray, own: np.ndarray) -> np.ndarray:
    """For each row the sum over its group without what has its own code."""
    return np.bincount(group, values)[group] - np.bincount(own, values)[own]
