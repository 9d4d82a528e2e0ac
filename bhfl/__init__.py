"""Bit-width heterogeneous federated learning: quantised clients, measured payloads, float32
servers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhfl.loading import load_model, load_run

__version__ = "0.1.0"
__all__ = ["load_model", "load_run"]


def __getattr__(name: str) -> Any:
    """Names that are loaded when they are asked for: `import bhfl` alone brings nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bhfl.loading"), name)
