"""What the file formats need beyond torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bhfl.files import user_path

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
        raise ImportError(f"{module} cannot be imported ({error}): pip install 'bhfl[{extra}]'") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write a file that is to be `path`, whole or not at all."""
    path = user_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
