"""Pictures as arrays: decoding, colour, cutting out, layout, compositing, and the proof that the product is unaltered.

Enters: encoded bytes and uint8 arrays. Leaves: uint8 arrays and numbers. Nothing here reads a file, starts a process or
knows a network; what touches the product's pixels is in compositing.py, and proof.py must be able to refute it;
lighting.py measures a scene, grounding.py and toning.py draw it toward the product.
"""

__all__ = [
    "colours",
    "compositing",
    "cutouts",
    "grounding",
    "images",
    "layout",
    "lighting",
    "matting",
    "proof",
    "quality",
    "scenes",
    "toning",
]
