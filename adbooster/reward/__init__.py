"""What people like and what they cannot use, learned: small heads on CLIP's vectors and the gates' figures.

Enters: vectors and figures of creatives, with clicks, impressions and verdicts. Leaves: a score (0-1) and the probability
that a picture is unusable, both calibrated on what was held out.
"""

__all__ = ["checks", "config", "features", "heads", "judging", "off_policy", "sheets", "training", "usability"]
