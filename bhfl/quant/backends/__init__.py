"""The ways to compute a quantised layer, by name: see :mod:`bhfl.quant.backends.base`.

A backend is a file with a subclass of :class:`Backend`, and an instance of it in the table below.
"""

import torch

from bhfl.quant.backends.auto import FAST, Auto
from bhfl.quant.backends.base import FAKE, Backend, BackendWarning
from bhfl.quant.backends.bnb import BitsAndBytes
from bhfl.quant.backends.int8 import Int8
from bhfl.quant.backends.integer import Integer
from bhfl.quant.plugins import leave_out, offered
from bhfl.quant.spec import check_choice

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (FAKE, Int8(), Int8("int8-bfloat16", torch.bfloat16), Integer(), BitsAndBytes())
}
BACKENDS.update({name: Auto(name, BACKENDS[fast]) for name, fast in FAST.items()})
"""The backends by name. Those of ``auto...`` choose among the others."""


GROUP = "bhfl.backends"
"""The group of entry points in which other packages offer backends."""


def take_offered() -> None:
    """Add the backends that other packages offer, each a class or an object of it; a name that is
    taken stays what it is.
    """
    for name, found in offered(GROUP).items():
        try:
            backend = found() if isinstance(found, type) else found
        except Exception as error:
            leave_out(GROUP, name, f"it cannot be made: {type(error).__name__}: {error}")
            continue
        if isinstance(backend, Backend):
            BACKENDS.setdefault(name, backend)
        else:
            leave_out(GROUP, name, f"it must be a Backend of bhfl.quant.backends, got {found!r}")


def get_backend(name: str) -> Backend:
    """The backend of a name.

    Raises:
        ValueError: No backend has this name; the message lists those that there are.
    """
    if name not in BACKENDS:
        take_offered()
    check_choice("backend", name, BACKENDS)
    return BACKENDS[name]


__all__ = ["BACKENDS", "Backend", "BackendWarning", "get_backend", "take_offered"]
