"""The optional packages that the file formats need."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRAS = {"export": ("safetensors",), "onnx": ("onnx", "onnxscript")}
"""The modules of each extra that this folder imports."""


def installed(extra: str) -> bool:
    """Whether the modules of an extra can be imported."""
    # only looked for: a run may write no file that needs them
    return all(find_spec(module) for module in EXTRAS[extra])


def needed(module: str, extra: str) -> Any:
    """A module of an extra; ImportError with the command that installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}): pip install 'bhfl[{extra}]'"
        ) from error
