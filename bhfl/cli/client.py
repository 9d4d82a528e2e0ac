"""The command line of ``bhfl-client``, the small distribution: ``bhfl join``, as of ``bhfl``."""

from collections.abc import Sequence
from typing import NoReturn

from bhfl import __version__
from bhfl.cli.command import leave
from bhfl.cli.installed import SMALL, WHOLE, clash

HELP = f"""usage: bhfl join --config FILE [--option value ...]

This is {SMALL}: it takes part in a federation over a network, with a model that torch alone trains.

  bhfl join --help           all options
  bhfl --version             the version

All other commands are those of {WHOLE}: pip uninstall {SMALL}, then pip install {WHOLE}.
"""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and leave with its exit code; see `bhfl.cli.command`.

    Args:
        args: The command and its options; by default those of the process.

    Raises:
        SystemExit: Always.
    """
    leave(run, args)


def run(args: list[str]) -> int:
    """Run one command; its exit code."""
    from bhfl.cli.exits import BAD_CONFIG, report

    problem = clash()
    if not problem:
        if not args or args[0] in ("-h", "--help"):
            print(HELP, end="")
            return 0
        if args[0] == "--version":
            print(f"{SMALL} {__version__}")
            return 0
        if args[0] == "join":
            from bhfl.cli.join import main as join

            return join(args[1:])
        problem = f"{SMALL} has the command join alone, got {args[0]!r}: the others are {WHOLE}'s"
    report(problem)
    return BAD_CONFIG
