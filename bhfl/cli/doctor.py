"""``bhfl doctor``: what is installed, what this machine can compute, and a self-test.

What needs torch is in `bhfl.cli.checkup`, so that an installation without it, or with a broken one,
is told what is wrong.
"""

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata

from bhfl import __version__
from bhfl.checks import labelled
from bhfl.cli.command import run_or_tell
from bhfl.cli.reading import ConfigError, options

HELP = """usage: bhfl doctor

Prints the versions of what bhfl uses, the extras, the devices, and the backends
that are fast on them; then it tests itself, which takes about two seconds.

Exit codes: 0 all is well, 1 a package is missing or a test failed.
"""


def main(args: Sequence[str]) -> int:
    """Run ``bhfl doctor``, which has no options; the exit code."""
    return run_or_tell(_examine, args, HELP)


def _examine(args: Sequence[str]) -> int:
    for name, value in options(args):
        word = f"--{name}" if name else repr(value)
        raise ConfigError(f"{word} is not understood: bhfl doctor has no options")
    print(
        f"bhfl {__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}\n"
    )
    needed = requirements()
    missing = [name for name in needed.pop("", []) if not version(name)]
    _print_packages(missing)
    _print_extras(needed)
    if missing:
        print(f"\nnot all is well: pip install {' '.join(missing)}")
        return 1
    try:
        from bhfl.cli.checkup import examine
    # whatever a broken torch raises: that is what is to be told
    except Exception as error:
        print(f"\nnot all is well: bhfl cannot be imported: {type(error).__name__}: {error}")
        return 1
    return examine()


def requirements() -> dict[str, list[str]]:
    """The packages that bhfl needs, under an empty name, and those of each extra; nothing where it
    was not installed by pip.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = metadata.requires("bhfl") or []
    except metadata.PackageNotFoundError:
        return found
    for text in lines:
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra == [\"'](\w+)[\"']", text)
        found.setdefault(extra[1] if extra else "", []).append(name[0] if name else text)
    return found


def version(package: str) -> str:
    """The version of an installed package; empty if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _print_packages(missing: Sequence[str]) -> None:
    names = ("torch", "lightning", "torchvision", "torchmetrics", "numpy", "jsonargparse")
    found = [f"{name} {version(name)}" for name in names if version(name)]
    print(labelled("packages", ", ".join(found)))
    if missing:
        print(labelled("", f"missing: {', '.join(missing)}"))
    print(labelled("cores", f"{os.cpu_count()}"))


def _print_extras(extras: dict[str, list[str]]) -> None:
    """Which extras are installed, and what installs the others."""
    print("\nextras")
    if not extras:
        print(labelled("", "unknown: bhfl was not installed by pip"))
    for extra, names in extras.items():
        lacking = [name for name in names if not version(name)]
        # for those who work on bhfl, in a checkout
        own = extra in ("dev", "docs")
        if not lacking:
            told = "installed" if own else ", ".join(f"{name} {version(name)}" for name in names)
        elif own:
            told = f"not installed: pip install -e '.[{extra}]'"
        else:
            told = f"pip install 'bhfl[{extra}]' (missing: {', '.join(lacking)})"
        print(labelled(extra, told))
