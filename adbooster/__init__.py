"""AdBooster: personalised ad creatives for whole catalogs, as a batch job on Ray."""

__version__ = "0.1.0"
