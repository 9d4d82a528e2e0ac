"""Models that leave: integer checkpoints in safetensors, ONNX graphs, model cards.

The packages behind the file formats are extras, ``bhfl[export]`` and ``bhfl[onnx]``, imported when
they are first used.
"""

from typing import TYPE_CHECKING, Any

from bhfl.export.integers import (
    QuantizedFileError,
    float_state,
    load_quantized,
    restore_,
    save_quantized,
)
from bhfl.export.qdq import export_onnx

if TYPE_CHECKING:
    from bhfl.export.run import export_run

__all__ = [
    "QuantizedFileError",
    "export_onnx",
    "export_run",
    "float_state",
    "load_quantized",
    "restore_",
    "save_quantized",
]


def __getattr__(name: str) -> Any:
    """Import `export_run` when it is first asked for: files alone need no Lightning."""
    if name == "export_run":
        from bhfl.export.run import export_run

        return export_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
