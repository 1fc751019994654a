"""Samples with a scene to weights: Ray Train teaches an inpainting UNet, or an adapter, the catalog's own scenes.

Enters: tables/samples and base weights. Leaves: weights/<revision>/ named by content, curves and paintings of the run. Every
example follows from (seed, epoch, sample), so a killed run goes on as if it had not been killed; keep it so.
"""

__all__ = ["checks", "config", "job"]
