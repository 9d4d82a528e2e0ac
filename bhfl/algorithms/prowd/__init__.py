"""ProWD: progressive weight dequantization and selective averaging (after Yoon et al., ICML 2022,
arXiv:2202.11453).
"""

from bhfl.algorithms.prowd.options import Dequantizer, Mask

__all__ = ["Dequantizer", "Mask"]
