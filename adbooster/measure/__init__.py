"""Pictures to figures with intervals: scores by two CLIPs, what CLIP does not see, trials painted to be compared.

Enters: live creatives, or weights and prompts to try on a fixed panel. Leaves: rows of tables/looks, and statistics over them.
Nothing is published here; the rooms evaluate and canary draw their conclusions from it.
"""

__all__ = [
    "checks",
    "config",
    "intervals",
    "measurements",
    "run",
    "stages",
    "statistics",
    "subjects",
    "trials",
    "vectors",
]
