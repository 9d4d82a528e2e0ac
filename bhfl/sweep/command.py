"""``bhfl sweep``: reads what is asked for and the matrix, runs what is missing, and reports."""

import time
from collections.abc import Sequence

from bhfl.checks import suggestion
from bhfl.cli.command import run_or_tell
from bhfl.cli.reading import ConfigError
from bhfl.engine.ending import STANDING, ended_in_order
from bhfl.sweep.plan import Plan
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.request import HELP, read_request


def main(args: Sequence[str]) -> int:
    """Run ``bhfl sweep``, given its options; the exit code."""
    STANDING.begin("the same command goes on")
    return run_or_tell(_sweep, args, HELP)


def _sweep(args: Sequence[str]) -> int:
    """The exit code of a sweep.

    Raises:
        ConfigError: The arguments, the matrix or a configuration cannot be used; nothing has been
            run by then.
    """
    begun = time.monotonic()
    request = read_request(args)
    matrix = read_matrix(request.matrix, request.typed, request.seeds)
    known = [name for name in (*matrix.methods, *matrix.settings) if name]
    problems = [
        f"--only must name methods or settings, got {name!r}{suggestion(name, known)}"
        for name in request.only
        if name not in known
    ]
    if problems:
        raise ConfigError(*problems)
    # torch is loaded from here on, when the matrix is known to be right
    from bhfl.sweep.runner import list_runs, run_missing

    plan = Plan(matrix, request.root / matrix.name, request.only)
    if request.dry_run:
        return list_runs(plan)
    with ended_in_order(deaf=False):
        return run_missing(plan, request, begun)
