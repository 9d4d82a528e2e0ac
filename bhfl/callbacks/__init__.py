"""Objects that a FederatedTrainer calls: any class with some of ``on_fit_start, on_client_end, on_round_end,
on_fit_end, on_measured``, each called as ``hook(trainer, **named)`` on every process.
"""

from bhfl.callbacks.histograms import WeightHistograms
from bhfl.callbacks.progress import Progress

__all__ = ["Progress", "WeightHistograms"]
