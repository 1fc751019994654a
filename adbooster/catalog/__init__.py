"""Product feeds of shops, read as they come: found, detected, unpacked, parsed as a stream.

Enters: the address of a feed in any of its formats. Leaves: rows with Google's names, a bad one with the key `malformed`.
Add a format in formats.py, its parser in parsers.py.
"""

__all__ = ["formats", "reader", "worth"]
