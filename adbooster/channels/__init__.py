"""Channels: the sizes that they show, what a file may be there, which part of a creative fills a slot, and what a feed says.

Enters: presets, rows of tables/deliveries, sizes of creatives. Leaves: frames, and entries of feeds. No file is opened here
besides presets.
"""

__all__ = ["feeds", "frames", "presets"]
