"""Models that leave: integer checkpoints in safetensors, ONNX graphs, model cards.

The packages behind the file formats are extras, ``bhfl[export]`` and ``bhfl[onnx]``, imported when
they are first used.
"""

from bhfl.export.integers import (
    QuantizedFileError,
    float_state,
    load_quantized,
    restore_,
    save_quantized,
)
from bhfl.export.qdq import export_onnx

__all__ = [
    "QuantizedFileError",
    "export_onnx",
    "float_state",
    "load_quantized",
    "restore_",
    "save_quantized",
]
