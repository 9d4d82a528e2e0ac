"""The ways to compute a quantised layer, by name: see :mod:`bhfl.quant.backends.base`.

A backend is a file with a subclass of :class:`Backend`, and an instance of it in the table below.
"""

import torch

from bhfl.quant.backends.auto import FAST, Auto
from bhfl.quant.backends.base import FAKE, Backend, BackendWarning
from bhfl.quant.backends.bnb import BitsAndBytes
from bhfl.quant.backends.int8 import Int8
from bhfl.quant.backends.integer import Integer
from bhfl.quant.spec import check_choice

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (FAKE, Int8(), Int8("int8-bfloat16", torch.bfloat16), Integer(), BitsAndBytes())
}
BACKENDS.update({name: Auto(name, BACKENDS[fast]) for name, fast in FAST.items()})
"""The backends by name. Those of ``auto...`` choose among the others."""


def get_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ValueError: No backend has this name; the message lists those that there are.
    """
    check_choice("backend", name, BACKENDS)
    return BACKENDS[name]


__all__ = ["BACKENDS", "Backend", "BackendWarning", "get_backend"]
