"""FedLQ: layer-wise bit-widths from layer significance (after Xu et al., Computer Networks 264,
2025).
"""

from bhfl.algorithms.fedlq.budget import Budget
from bhfl.algorithms.fedlq.sensitivity import Sensitivity

__all__ = ["Budget", "Sensitivity"]
