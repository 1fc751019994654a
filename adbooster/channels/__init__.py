"""Channels: the sizes that they show, what a file may be there, which part of a creative fills a slot, and what a feed says.

Enters: presets, rows of tables/deliveries, sizes of creatives. Leaves: frames, entries of feeds, and their text. No file is opened here
besides presets.
"""

__all__ = ["feed_text", "feeds", "frames", "presets", "validation"]
