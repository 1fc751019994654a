"""What a delivered file says of where it comes from: written when it is made, read back from its bytes.

Enters: facts on a creative, encoded pictures, certificates and a key that settings name. Leaves: an XMP packet, a file with a
signed manifest, and what a file says.
"""

__all__ = ["certificates", "credentials", "signing", "xmp"]
