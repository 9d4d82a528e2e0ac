"""Callbacks: what a `bhfl.engine.FederatedTrainer` tells of its run. The base of your own is
`Callback`.
"""

from bhfl.callbacks.histograms import WeightHistograms
from bhfl.callbacks.progress import Progress
from bhfl.engine.callback import Callback

__all__ = ["Callback", "Progress", "WeightHistograms"]
