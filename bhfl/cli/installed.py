"""Which distribution is installed: ``bhfl``, or ``bhfl-client``, which holds of the same package
what a client of a network needs that torch alone trains.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

WHOLE = "bhfl"
SMALL = "bhfl-client"


def is_whole() -> bool:
    """Whether this is the whole package."""
    return find_spec("bhfl.main") is not None


def clash() -> str:
    """What is wrong where both are installed, as each writes over files of the other, and removes
    them with itself; an empty text where one is.
    """
    for name in (WHOLE, SMALL):
        try:
            version(name)
        except PackageNotFoundError:
            return ""
    return (
        f"{WHOLE} and {SMALL} are both installed, and hold the same package: pip uninstall {WHOLE} "
        f"{SMALL}, then install one of them again"
    )
