"""Outcomes and marks -> what is shown, retired and learned from."""
