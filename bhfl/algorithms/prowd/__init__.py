"""ProWD: progressive weight dequantization and selective averaging (after Yoon et al., ICML 2022,
arXiv:2202.11453).
"""

from bhfl.algorithms.prowd.blocks import Block
from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
from bhfl.algorithms.prowd.options import Dequantizer, Mask
from bhfl.algorithms.prowd.pairs import RowPairs, WeightBatch, WeightPairs
from bhfl.algorithms.prowd.selection import Selection, certified_select, mask_limit

__all__ = [
    "Block",
    "Dequantizer",
    "Mask",
    "ProgressiveDequantizer",
    "RowPairs",
    "Selection",
    "WeightBatch",
    "WeightPairs",
    "certified_select",
    "mask_limit",
]
