"""`sys.exit` called by code that bhfl calls: no end of a command that is done."""

import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from bhfl.engine.ending import Terminated


class ExitCalledError(ValueError):
    """Code that bhfl called, such as a data set, called `sys.exit`; a run that it cuts short is not
    done.
    """


@contextmanager
def no_exit_of_others(
    allowed: Collection[str] = ("bhfl", "argparse", "jsonargparse"),
) -> Iterator[None]:
    """Turn a SystemExit from the block into an error, because it would pass for the end of a
    command that is done.

    Args:
        allowed: Packages that may call `sys.exit`, as parsers do after a help text.

    Raises:
        ExitCalledError: Another one called it, or one that was at work while a module was imported.
    """
    try:
        yield
    except Terminated:
        raise
    except SystemExit as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        packages = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in frames]
        # a module that exits while it is imported does so below importlib, whoever imports it
        if packages[-1] in allowed and "importlib" not in packages:
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ExitCalledError(
            f"sys.exit({error.code!r}) was called in {place.filename}, line {place.lineno}, in "
            f"{place.name}: a command must not be left in its middle, as if it were done; raise an "
            "error there"
        ) from error
