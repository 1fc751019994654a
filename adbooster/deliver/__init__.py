"""What is live to the ad channels: renditions in every size, labelled, proven unchanged, and the feeds that name them.

Enters: tables/creatives, samples and marks, presets of channels. Leaves: objects, one commit of tables/deliveries, and feeds
below delivery/<channel>/ that readers see whole or not at all. A rendition is named by the creative's file, the slot and the
settings, so that an unchanged catalog costs neither decoding nor encoding.
"""

__all__ = ["checks", "config", "job", "withdraw"]
