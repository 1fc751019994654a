"""What a night and a year of some size take: GPUs, cores, euros, storage and requests to it, from measured figures alone.

Enters: the size of a shop, prices, and the stage times of a root's runs or figures.yaml. Leaves: a forecast in which every sum
names its figures, and where and by whom each was measured; what nobody has measured is named and left out. Nothing is run.
"""

__all__ = ["figures", "forecast", "workload"]
