"""Feed to samples: every picture of every product fetched, masked, captioned and judged, if it changed.

Enters: a product feed and the photos that it names. Leaves: tables/samples, photos and masks as objects, a report. A bad
picture is a row with a reject word; add words in contracts/schema.py, rules in config.py.
"""

__all__ = ["checks", "config", "job"]
