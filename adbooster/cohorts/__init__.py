"""A cohort file or an interest log to cohorts: groups of users, each with a query and a context.

Enters: YAML or Parquet that a person wrote, or a log of what users looked for. Leaves: tables/cohorts and tables/members.
No user id, no rare text and no line of the log may leave this room; users are hashes under a salt from the environment.
"""

__all__ = ["checks", "config", "job"]
