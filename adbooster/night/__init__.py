"""The stages in order, one night at a time: lock, what is due, budget, resume.

Enters: one file of settings with a section a job. Leaves: the jobs' tables, and runs/<run_id>/night.json with each
step's state. A step that finished with the same settings is not run again when a night is resumed.
"""

__all__ = ["checks", "config", "job", "state"]
