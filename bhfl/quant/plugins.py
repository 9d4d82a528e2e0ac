"""What other packages offer: backends, and whatever else is named by a group of entry points."""

import warnings
from functools import cache
from importlib.metadata import entry_points
from typing import Any


@cache
def offered(group: str) -> dict[str, Any]:
    """The objects that installed packages offer in a group of entry points, by name.

    One that cannot be loaded is left out with a warning that names it, and so is the second of a
    name.

    Args:
        group: The name of the group, such as ``bhfl.backends``.
    """
    found: dict[str, Any] = {}
    for point in entry_points(group=group):
        if point.name in found:
            leave_out(group, point.name, "another package offers this name too")
            continue
        try:
            found[point.name] = point.load()
        # a module that calls sys.exit is as broken as one that raises
        except (Exception, SystemExit) as error:
            leave_out(group, point.name, f"{point.value}: {type(error).__name__}: {error}")
    return found


def leave_out(group: str, name: str, why: str) -> None:
    """Warn that a plug-in is not used."""
    owners = [p.dist.name for p in entry_points(group=group, name=name) if p.dist is not None]
    warnings.warn(
        f"plug-in {name!r} of {' and '.join(owners)} ({group}) is left out: {why}", stacklevel=3
    )
