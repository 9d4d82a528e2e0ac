"""Ways to compute a quantised layer: see :mod:`bhfl.quant.backends.base`."""

import difflib

import torch

from bhfl.quant.backends.auto import FAST, Auto
from bhfl.quant.backends.base import FAKE, Backend, BackendWarning
from bhfl.quant.backends.bnb import BitsAndBytes
from bhfl.quant.backends.int8 import Int8
from bhfl.quant.backends.integer import Integer

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (FAKE, Int8(), Int8("int8-bfloat16", torch.bfloat16), Integer(), BitsAndBytes())
}
BACKENDS.update({name: Auto(name, BACKENDS[fast]) for name, fast in FAST.items()})
"""The backends by name."""


def get_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ValueError: No backend has this name.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(str(name), BACKENDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}{hint}")
    return BACKENDS[name]


__all__ = [
    "BACKENDS",
    "FAKE",
    "Auto",
    "Backend",
    "BackendWarning",
    "BitsAndBytes",
    "Int8",
    "Integer",
    "get_backend",
]
