"""Bit-width heterogeneous federated learning: quantised clients, measured payloads, float32
servers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhfl.loading import load_model, load_run

__version__ = "0.1.0"
__all__ = ["load_model", "load_run"]


def lazily(room: str, homes: dict[str, str]) -> Any:
    """The ``__getattr__`` of a package whose public names are loaded when they are asked for.

    Args:
        room: The package.
        homes: The file of the package that has a name, by name.
    """

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(import_module(f"{room}.{homes[name]}"), name)

    return found


__getattr__ = lazily(__name__, dict.fromkeys(__all__, "loading"))
"""`import bhfl` alone brings nothing."""
