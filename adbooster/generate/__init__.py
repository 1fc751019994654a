"""Samples, cohorts and weights to what is live: plan the requests, paint what is missing, publish in one commit.

Enters: tables/samples, tables/cohorts, weights, marks of people. Leaves: tables/creatives and the run's page. Its stage is
painting.painter.Painter; nothing is live before publish.py commits, and a request that is live or staged is not painted.
"""

__all__ = ["checks", "config", "job", "marks"]
