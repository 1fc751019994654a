"""Settings and report of `jobs.learn`."""
