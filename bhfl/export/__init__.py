"""Models as files for others: integer checkpoints in safetensors, ONNX graphs, and model cards.

The packages behind the file formats are extras, ``bhfl[export]`` and ``bhfl[onnx]``, which are
imported when they are first used.
"""

from typing import TYPE_CHECKING

from bhfl import lazily
from bhfl.export.integers import QuantizedFileError, load_quantized, restore_, save_quantized
from bhfl.export.qdq import export_onnx
from bhfl.quant.codes import float_tensors as float_state

# type checkers and editors do not follow __getattr__
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

__getattr__ = lazily(__name__, {"export_run": "run"})
"""`export_run` is imported when it is first asked for: the other names work without Lightning."""
