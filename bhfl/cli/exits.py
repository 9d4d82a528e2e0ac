"""What a command that fails says on the console, and its exit code."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bhfl.checks import clipped
from bhfl.engine.console import yellow
from bhfl.engine.ending import speaks
from bhfl.files import naming

BAD_CONFIG = 2
BAD_DATA = 3
BAD_CHECKPOINT = 4
TOO_FEW_CLIENTS = 5
MAX_PROBLEMS = 20

_OF_DATA = {
    "bhfl.data.datamodule": "FederatedDataModule",
    "bhfl.data.source": "LoaderSource",
    "bhfl.data.tensors": "TensorSource",
    "bhfl.data.arrays": "Arrays",
}
"""The classes whose methods read data."""
_SOURCE = str(Path(__file__).parents[1])
_format_warning = warnings.formatwarning


def report(*problems: str) -> None:
    """Print problems to stderr."""
    for problem in problems[:MAX_PROBLEMS]:
        say("error: " + "\n".join(map(clipped, problem.splitlines())))
    if len(problems) > MAX_PROBLEMS:
        say(f"error: and {len(problems) - MAX_PROBLEMS} more")


class _Stdout(logging.Handler):
    """Prints what a run says: on the console of now, and a full disk is an error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message as it is."""
        with naming(Path("standard output")):
            print(record.getMessage(), flush=True)


@contextmanager
def log_on_stdout() -> Iterator[None]:
    """Print the messages of the logger ``bhfl``, and nowhere else, while a command runs."""
    logger = logging.getLogger("bhfl")
    handler = _Stdout()
    level = logger.level
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def say(text: str) -> None:
    """Print `text` to stderr, from the first process of a machine alone."""
    if speaks():
        # the disk of a log may be full, and the exit code is still to be told
        with suppress(OSError):
            print(text, file=sys.stderr)


class WarningForm:
    """Our own warnings as one line for users; others as ever, with the place in the code; each text
    once.

    An object takes the arguments of ``warnings.formatwarning``, which it is to replace.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, *place: Any
    ) -> str:
        """The text of a warning; none where the same was said before."""
        text = _format_warning(message, category, filename, *place)
        ours = category is UserWarning and filename.startswith(_SOURCE)
        if ours:
            text = f"warning: {clipped(str(message))}"
        # Python forgets what it has shown whenever any code sets a filter of its own
        if text in self._said:
            return ""
        self._said.add(text)
        return f"{yellow(text)}\n" if ours else text


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that its user can mend; None for a bug, whose traceback is worth
    more.
    """
    from bhfl.engine.checkpoint import CheckpointError
    from bhfl.engine.exits import ExitCalledError
    from bhfl.engine.refusal import TooFewClientsError

    if isinstance(error, CheckpointError):
        return BAD_CHECKPOINT
    if isinstance(error, TooFewClientsError):
        return TOO_FEW_CLIENTS
    # its own traceback is ours: where exit was called stands in that of its cause
    if isinstance(error, ExitCalledError):
        return BAD_DATA if error.__cause__ and by_data(error.__cause__) else BAD_CONFIG
    if (isinstance(error, ValueError | OSError) or too_large(error)) and by_data(error):
        return BAD_DATA
    # of ours, an ImportError names the extra that is missing
    ours = isinstance(error, ValueError | ImportError) and raised_by(error) == "bhfl"
    return BAD_CONFIG if ours or isinstance(error, OSError) else None


def too_large(error: BaseException) -> bool:
    """Whether an array was asked for that no memory, or no index, is large enough for."""
    # of NumPy, whose error is a ValueError
    words = "array is too big|[Mm]aximum allowed (dimension|size) exceeded"
    if isinstance(error, RuntimeError | TypeError | OverflowError):
        words = "allocate|out of memory|[Oo]verflow|too large(?! to average)"
    elif not isinstance(error, ValueError):
        return isinstance(error, MemoryError)
    return bool(re.search(words, str(error)))


def told(error: BaseException) -> str:
    """What an error says, with its notes, and what helps where memory was short."""
    text = str(error)
    notes = getattr(error, "__notes__", [])
    # in one line: torch adds where it was in its own code
    if too_large(error):
        text = text.partition("\n")[0]
        notes = [*notes, "(smaller sizes of model, data or batch need less memory)"]
    return " ".join([text, *notes])


def by_data(error: BaseException) -> bool:
    """Whether a data module, or its source, was at work at `error`; its constructor takes options,
    not data.
    """
    # what is not imported was not at work, and may need a package that is not here
    at_work = tuple(
        getattr(sys.modules[home], name) for home, name in _OF_DATA.items() if home in sys.modules
    )
    return any(
        isinstance(frame.f_locals.get("self"), at_work) and frame.f_code.co_name != "__init__"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def raised_by(error: BaseException) -> str:
    """The package whose code raised `error`: bhfl raises ValueError, or for a
    missing package ImportError, for what its user can mend, and nothing else.
    """
    name = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0]


def original(error: BaseException) -> BaseException:
    """The error that jsonargparse wrapped while it built an object, or `error` itself where it only
    has its own.
    """
    cause: BaseException | None = error
    while cause is not None and raised_by(cause) == "jsonargparse":
        cause = cause.__cause__ or cause.__context__
    return cause or error
