"""What a run was made with: versions, the code in the current folder, processor and backends."""

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import bhfl
from bhfl.engine.fingerprint import BACKENDS
from bhfl.quant.backends.machine import cpuinfo, product_instructions
from bhfl.settings import Role
from bhfl.told import Told

PACKAGES = ("torch", "lightning", "torchmetrics", "torchvision", "numpy", "bitsandbytes")
"""Those whose versions results may depend on."""
NEEDED = ("torch", "numpy")
"""Those that every client has; one that torch alone trains has none of the others."""
_GIT_SECONDS = 5.0


def environment(told: Told, threads: int, channels_last: bool) -> dict[str, Any]:
    """What is written to ``env.json``.

    Args:
        told: What the run is told, which names the backends that were chosen.
        threads: CPU threads of a process.
        channels_last: The format of its images.
    """
    return {
        **versions(),
        "platform": platform.platform(),
        "git": git(Path()),
        "cpu": processor(),
        "gpu": gpu(),
        "threads": threads,
        "backends": told[Role.NUMERICS.value].get(BACKENDS, {}),
        "channels_last": channels_last,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


@cache
def versions() -> dict[str, str]:
    """The versions of bhfl, of Python, and of those of `PACKAGES` that are installed."""
    found = {"bhfl": bhfl.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    # with what it was built for
    return found | {"torch": str(torch.__version__)}


def processor() -> dict[str, Any]:
    """The name of the CPU, the widest instructions that torch uses on it, those it has for codes of
    8 bits and bfloat16, and the cores that this process may use.
    """
    told: dict[str, str] = {}
    for line in cpuinfo().splitlines():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    return {
        "name": told.get("model name") or platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": product_instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


def gpu() -> str | None:
    """The name of the GPU that is computed on; None where none is."""
    # to ask for a name would start CUDA where nothing computes on it
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_device_name() if started else None


def git(folder: Path) -> Mapping[str, Any] | None:
    """The commit that a folder is at, and whether files that git knows were changed since; None
    where there is no git, or no repository.
    """
    told = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if told is None:
        # of a large tree, what was changed may take too long to find
        commit = _git(folder, "rev-parse", "HEAD")
        return None if commit is None else {"commit": commit, "changed": None}
    # lines of the branch come first, such as "# branch.oid 346b00a..."
    lines = told.splitlines()
    commit = lines[0].removeprefix("# branch.oid ")
    if commit == "(initial)":
        return None
    return {"commit": commit, "changed": not lines[-1].startswith("# ")}


def _git(folder: Path, *command: str) -> str | None:
    # no program that the repository's own settings name is run, and no file of it is written
    call = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *command]
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
