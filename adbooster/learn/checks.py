"""Checks of the settings that run before a cluster is used."""
