"""Callbacks: what a `bhfl.engine.FederatedTrainer` tells of its run. The base of your own is
`Callback`.
"""

from bhfl.callbacks.histograms import WeightHistograms
from bhfl.callbacks.pictures import Pictures
from bhfl.engine.callback import Callback
from bhfl.engine.progress import Progress

__all__ = ["Callback", "Pictures", "Progress", "WeightHistograms"]
