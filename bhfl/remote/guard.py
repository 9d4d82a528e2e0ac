"""Become another program that ends when the process that started it ends, in whatever way.

It is run by its path, so that nothing of the package is loaded: ``python -I -S guard.py PARENT
SIGNAL PROGRAM ARGUMENTS...``.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
"""The request to Linux for a signal at the end of the parent; it outlasts the change of program."""


def main() -> None:
    """Ask for the signal, and become the program."""
    parent, signal = map(int, sys.argv[1:3])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal)
    # the parent may have ended before the request
    if os.getppid() == parent:
        os.execv(sys.argv[3], sys.argv[3:])


if __name__ == "__main__":
    main()
