"""What people like and what they cannot use, learned: small heads on CLIP's vectors and the gates' figures.

Enters: features of candidates. Leaves: a score (0-1) and the probability that a picture is unusable, both calibrated.
"""

__all__: list[str] = []
