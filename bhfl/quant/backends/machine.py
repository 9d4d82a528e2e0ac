"""Which backends this machine computes fast, and from which size of a layer on.

Where a processor says that it has no products of int8 codes, no backend is faster than ``fake``.
Where it has them, or does not tell, one short measurement decides, which is kept in
``~/.cache/bhfl`` (or ``$XDG_CACHE_HOME/bhfl``) for the next process: two processors with the same
instructions gain by them from sizes that are five times apart. On GPUs a table holds.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

Table = dict[tuple[str, str], int]
"""Backend and kind of layer -> the number of channels from which the backend is faster than
``fake``; what is never faster has no entry.
"""
CUDA: Table = {
    ("int8", "linear"): 1024,
    ("int8-bfloat16", "linear"): 1024,
    ("integer", "linear"): 1024,
}
"""What holds on GPUs that have products of int8 codes."""
measure: Callable[[str], Table] | None = None
"""The short measurement. It quantises layers, and so stands above this file, in
:mod:`bhfl.quant.backends.tuning`, which puts it here.
"""
_CODES = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Instructions for products of int8 codes, one of which is enough."""
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
_MOST_BYTES = 1 << 16
"""More than any kept measurement takes."""


def table_of(device: str) -> Table:
    """The table of a type of device on this machine, measured where nothing else decides.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    if device == "cuda":
        fast = fast_on_cuda()
        return {key: size for key, size in CUDA.items() if key[0] in fast}
    flags = _flags()
    if device != "cpu" or (flags is not None and not flags & _CODES):
        return {}
    kept = _kept(device)
    # an empty table was measured too: nothing is faster here
    return _measured(device) if kept is None else kept


def fast_on_cuda() -> set[str]:
    """The backends that this GPU has instructions for: Turing brought products of int8 codes,
    Ampere those of bfloat16.
    """
    version = torch.cuda.get_device_capability()
    if version < (7, 5):
        return set()
    return {"int8", "integer", "int8-bfloat16"} if version >= (8, 0) else {"int8", "integer"}


def product_instructions() -> list[str] | None:
    """The instructions of the processor for products of int8 codes and of bfloat16, by name; None
    where it does not tell.
    """
    flags = _flags()
    return None if flags is None else sorted(flags & (_CODES | _BFLOAT16))


def _flags() -> set[str] | None:
    """The instruction sets of an x86 processor; None of another one, or where it is not told."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    # older releases of torch do not tell them
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if told:
        return {name for name, value in told.items() if value is True}
    for line in cpuinfo().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return None


def cpuinfo() -> str:
    """What Linux tells of the processors; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---- a measurement that is kept ------------------------------------------------------------------


def _path(device: str) -> Path:
    """The file of this processor, torch and number of threads."""
    lines = cpuinfo().splitlines()
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    parts = [platform.machine(), platform.processor(), *sorted(told)]
    parts += [torch.__version__, str(torch.get_num_threads()), device]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "bhfl" / f"backends-{digest}.json"


def _kept(device: str) -> Table | None:
    """The table that was measured before; None where there is none, or a damaged file."""
    table: Table = {}
    try:
        with _path(device).open("rb") as file:
            rows: Any = json.loads(file.read(_MOST_BYTES))
        for backend, kind, size in rows:
            if kind not in ("linear", "conv") or type(size) is not int or size < 1:
                return None
            table[str(backend), kind] = size
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError):
        return None
    return table


def _measured(device: str) -> Table:
    """Measure the table, and keep it where that is possible."""
    assert measure is not None, "bhfl.quant has put it there"
    table = measure(device)
    rows = [[*key, size] for key, size in table.items()]
    # a home that cannot be written costs another measurement, and no more
    with suppress(OSError, RuntimeError):
        path = _path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        # a file that is cut off is measured anew, as any other damage
        path.write_text(json.dumps(rows))
    return table
