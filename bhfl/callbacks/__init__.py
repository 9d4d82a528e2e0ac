"""Callbacks: what a `bhfl.engine.FederatedTrainer` tells of its run. The base of your own is
`Callback`.
"""

from bhfl.callbacks.histograms import WeightHistograms
from bhfl.engine.callback import Callback
from bhfl.engine.progress import Progress

__all__ = ["Callback", "Progress", "WeightHistograms"]
