"""What the file formats need beyond torch."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

EXTRAS = {"export": ("safetensors",), "onnx": ("onnx", "onnxscript")}
"""The modules that each extra brings, as far as this folder imports them."""


def installed(extra: str) -> bool:
    """Whether the modules of an extra are there."""
    return all(find_spec(module) for module in EXTRAS[extra])


def needed(module: str, extra: str) -> Any:
    """A module of an extra; ImportError with the command that brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}): pip install 'bhfl[{extra}]'"
        ) from error
