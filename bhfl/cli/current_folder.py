"""The user's own classes in the current folder: found for a ``class_path`` and by each other, and
by nobody else.

Many packages try whether another one is there (``tabulate``, ``pynvml``, ``ruamel``). With the
current folder on ``sys.path`` such a trial would run a file of that name, which came with
somebody's data.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

from bhfl.cli.reading import ConfigError

_NAMED = {("bhfl", "_import_named"), ("jsonargparse", "import_object")}
"""Package and function of those who import what a configuration names."""


class CurrentFolder(MetaPathFinder):
    """Finds modules in a folder after all others, for names of a configuration and for modules
    found here before.

    Args:
        folder: Where the user's own modules are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec; None for one that is not here, or not to be looked for here."""
        # with a path it is a submodule, which its package finds by itself
        if path is not None or not self._asked_by_the_user():
            return None
        spec = PathFinder.find_spec(name, [self.folder], target)
        if spec is not None:
            self.found.add(name)
        return spec

    def _asked_by_the_user(self) -> bool:
        """Whether the import is one of a configuration, or of a module that was found here."""
        # 0 is here and 1 is find_spec: whoever asked stands behind Python's own import
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and _package(frame) in _IMPORT:
            frame = frame.f_back
        if frame is None:
            return False
        package = _package(frame)
        return package in self.found or (package, frame.f_code.co_name) in _NAMED


_IMPORT = ("importlib", "_frozen_importlib", "_frozen_importlib_external")
"""What Python's own import is at work in."""


def _package(frame: FrameType) -> str:
    """The package, or the module of none, whose code runs there."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def find_in_current_folder() -> None:
    """Find the user's own modules in the folder that is the current one now, unless Python does so
    already.

    Raises:
        ConfigError: It is not there any more, or cannot be entered.
    """
    # one program may run several commands, each in another folder
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, CurrentFolder)]
    try:
        here = os.getcwd()
    except OSError as error:
        # told without torch, some builds of which cannot be loaded in such a folder
        raise ConfigError(
            f"{error} (the current folder is not there any more: go to another one)"
        ) from error
    if here not in sys.path:
        # last, so that what is installed comes first
        sys.meta_path.append(CurrentFolder(here))


def forget_start_folder() -> None:
    """Take the current folder off ``sys.path``, where ``python -m`` has put it before all that is
    installed.
    """
    # a folder that is gone was not put there
    with suppress(OSError):
        # under python -P it was not either, and the first path is somebody else's
        if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
            del sys.path[0]
