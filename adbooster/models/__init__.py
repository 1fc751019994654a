"""The networks, one a file, each behind a small class: a path and a device in, arrays in, arrays or text out.

Enters: local folders with safetensors or ONNX files, and uint8 arrays. Leaves: masks, captions, paintings, vectors and
probabilities. Add a network as a file of its own; files.py checks what a folder must hold without loading it.
"""

__all__ = [
    "blip",
    "causal_lm",
    "clip",
    "clip_input",
    "files",
    "outpainter",
    "preprocessing",
    "safety",
    "saliency",
    "settings",
]
