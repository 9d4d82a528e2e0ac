"""FedLQ: layer-wise bit-widths from layer significance (after Xu et al., Computer Networks 264,
2025).
"""

from bhfl.algorithms.fedlq.allocation import Allocation, allocate, layer_bits
from bhfl.algorithms.fedlq.bound import ConvergenceBound, convergence_bound
from bhfl.algorithms.fedlq.budget import Budget
from bhfl.algorithms.fedlq.sensitivity import Sensitivity
from bhfl.algorithms.fedlq.significance import (
    Probe,
    curvature,
    layer_costs,
    probe,
    significance,
    variance_table,
)

__all__ = [
    "Allocation",
    "Budget",
    "ConvergenceBound",
    "Probe",
    "Sensitivity",
    "allocate",
    "convergence_bound",
    "curvature",
    "layer_bits",
    "layer_costs",
    "probe",
    "significance",
    "variance_table",
]
