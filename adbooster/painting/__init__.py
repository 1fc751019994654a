"""From a request to proven files: place, paint K candidates, score, gate, select, finish, store.

Enters: requests (schema.REQUESTS) and paths of models. Leaves: staged rows of creatives (schema.STAGED) and objects that
nothing names yet. Used by the rooms generate and measure; whatever changes a pixel here belongs into the recipe.
"""

__all__ = [
    "brand_rules",
    "candidates",
    "checks",
    "config",
    "duplicates",
    "finish",
    "gates",
    "painter",
    "placing",
    "requests",
    "targeting",
]
