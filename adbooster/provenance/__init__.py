"""What a delivered file says of where it comes from: written when it is made, read back from its bytes.

Enters: facts on a creative, encoded pictures. Leaves: an XMP packet, and what a file says.
"""

__all__ = ["xmp"]
