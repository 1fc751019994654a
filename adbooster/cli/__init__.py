"""How people and schedulers start the work: `python -m jobs.<job>` and `adbooster <command>`.

Enters: files, environment variables and flags. Leaves: validated settings for a job, log lines, a report and an exit code.
Nothing imports this room but jobs/; it decides nothing about pictures or tables.
"""

from adbooster.cli.run import main

__all__ = ["main"]
