"""Everything below `root_uri`: objects named by content, Delta tables, models and their node cache, lock, maintenance, vacuum, rollback.

Enters: bytes, rows of contracts.schema, addresses of models. Leaves: the same, from a local folder or S3 alike. Only this
room writes below the root; a table changes by one commit on top of the version that was read, or not at all.
"""

__all__ = [
    "buckets",
    "inputs",
    "lock",
    "maintenance",
    "mask_models",
    "model_store",
    "objects",
    "outage",
    "rollback",
    "tables",
    "vacuum",
]
