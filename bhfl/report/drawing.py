"""What the pictures have in common; matplotlib is optional, and loaded when the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pyplot() -> Any:
    """``matplotlib.pyplot``, drawing to files.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'bhfl[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def labels(layers: Sequence[str]) -> list[str]:
    """Names of parameters without what all of them end with and begin with.

    >>> labels(["net.conv.weight", "net.head.0.weight"])
    ['conv', 'head.0']
    >>> labels(["weight"])
    ['weight']
    """
    parts = [name.split(".") for name in layers]
    if all(len(words) > 1 and words[-1] == "weight" for words in parts):
        parts = [words[:-1] for words in parts]
    while len(parts) > 1 and all(len(words) > 1 and words[0] == parts[0][0] for words in parts):
        parts = [words[1:] for words in parts]
    return [".".join(words) for words in parts]
