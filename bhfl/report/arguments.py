"""What the report's commands have in common: paths as arguments, and errors as lines."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from bhfl.files import user_path


class Parser(argparse.ArgumentParser):
    """Arguments whose errors are told as those of all commands."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2, and one line for each problem."""
        self.exit(2, "".join(f"error: {line}\n" for line in message.splitlines()))


def picture_parser(name: str, about: str | None) -> Parser:
    """The arguments of ``python -m bhfl.report.<name>``, which draws one picture of some runs."""
    parser = Parser(prog=f"python -m bhfl.report.{name}", description=about)
    which = "run folders, or folders that hold some"
    parser.add_argument("runs", nargs="+", type=path_argument, help=which)
    parser.add_argument("--out", type=path_argument, default=Path(f"{name}.png"))
    return parser


def path_argument(text: str) -> Path:
    """The path that an argument means, for ``type=`` of argparse.

    Raises:
        argparse.ArgumentTypeError: No path can be meant; argparse prints the reason as it is.
    """
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@contextmanager
def errors_told(parser: Parser) -> Iterator[None]:
    """Leave a command with exit code 2, and one line for each problem, where a block fails."""
    try:
        yield
    # whoever read what is printed has gone, which is no error
    except BrokenPipeError:
        raise
    except (ValueError, ImportError, OSError) as error:
        parser.error(str(error))
