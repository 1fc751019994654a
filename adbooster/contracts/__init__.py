"""What all jobs agree on: table schemas, settings, the recipe and the names that follow from it, errors, redaction.

Enters: nothing; this room imports no other and no library that needs a GPU. Leaves: types, schemas and pure functions that
every room uses. A change here changes tables, files or names of requests, so it needs a migration and a line in CHANGELOG.md.
"""

__all__ = [
    "deadline",
    "errors",
    "evaluation",
    "naming",
    "recipe",
    "redaction",
    "schema",
    "settings",
    "text",
    "yaml_text",
]
