"""ProWD: progressive weight dequantization and selective averaging (after Yoon et al., ICML 2022,
arXiv:2202.11453).
"""

from typing import TYPE_CHECKING

from bhfl import lazily

# type checkers and editors do not follow __getattr__
if TYPE_CHECKING:
    from bhfl.algorithms.prowd.blocks import Block
    from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
    from bhfl.algorithms.prowd.options import Dequantizer, Mask
    from bhfl.algorithms.prowd.pairs import RowPairs, WeightBatch, WeightPairs
    from bhfl.algorithms.prowd.selection import Selection, certified_select, mask_limit

_HOMES = {
    "Block": "blocks",
    "Dequantizer": "options",
    "Mask": "options",
    "ProgressiveDequantizer": "dequantizer",
    "RowPairs": "pairs",
    "Selection": "selection",
    "WeightBatch": "pairs",
    "WeightPairs": "pairs",
    "certified_select": "selection",
    "mask_limit": "selection",
}
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

__getattr__ = lazily(__name__, _HOMES)
"""The names above, loaded when asked for: a client needs no dequantizer, and no Lightning."""
