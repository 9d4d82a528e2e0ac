"""``bhfl sweep``: reads what is asked for and the matrix, runs what is missing, and reports."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bhfl.checks import suggestion
from bhfl.cli.command import run_or_tell
from bhfl.cli.exits import report
from bhfl.cli.reading import ConfigError, asks_help
from bhfl.engine.ending import STANDING, ended_in_order
from bhfl.sweep.matrix import Matrix
from bhfl.sweep.reader import read_matrix
from bhfl.sweep.request import HELP, Request, read_request

if TYPE_CHECKING:
    from bhfl.sweep.plan import Plan
    from bhfl.sweep.survey import Survey

FAILED = 1
ENDING_SECONDS = 20.0
"""What a sweep needs to end: its runs to close their files, and the report; a tenth of its minutes
if that is less.
"""


def main(args: Sequence[str]) -> int:
    """Run ``bhfl sweep``, given its options; the exit code."""
    STANDING.begin("the same command goes on")
    return run_or_tell(_sweep, args)


def _sweep(args: Sequence[str]) -> int:
    """The exit code of a sweep.

    Raises:
        ConfigError: The arguments, the matrix or a configuration cannot be used; nothing has been
            run by then.
    """
    begun = time.monotonic()
    if asks_help(args):
        print(HELP, end="")
        return 0
    request = read_request(args)
    matrix = read_matrix(request.matrix, request.typed, request.seeds)
    _check_only(request.only, matrix)
    from bhfl.sweep.plan import Plan

    plan = Plan(matrix, request.root / matrix.name, request.only)
    if request.dry_run:
        _list(plan)
        return 0
    with ended_in_order(deaf=False):
        return _run(plan, request, begun)


def _check_only(names: Sequence[str], matrix: Matrix) -> None:
    known = [name for name in (*matrix.methods, *matrix.settings) if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        rule = "--only must name methods or settings, got"
        raise ConfigError([f"{rule} {name!r}{suggestion(name, known)}" for name in unknown])


def _list(plan: Plan) -> None:
    """Print each run with its state."""
    from bhfl.sweep.check import Configs
    from bhfl.sweep.survey import Survey

    states = Survey(plan, Configs(machine=False)).states()
    for name, state in states.items():
        print(f"{state:<8}  {plan.root / name}")
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    print(f"{len(states)} runs: {counts}")


def _run(plan: Plan, request: Request, begun: float) -> int:
    from bhfl.sweep.check import Configs
    from bhfl.sweep.processes import Processes, locked
    from bhfl.sweep.runner import Runner
    from bhfl.sweep.survey import Survey

    with locked(plan.root) as lock:
        survey = Survey(plan, Configs(machine=True))
        runner = Runner(survey, Processes(lock), request.jobs)
        until = begun + 60 * request.minutes - min(ENDING_SECONDS, 6 * request.minutes)
        runner.run(until)
        _report(survey)
        left = f"{runner.left} of {len(runner.sizes)} runs left"
        if runner.left and time.monotonic() >= until:
            when = f"stopped after {request.minutes:g} minutes"
            print(f"{when}: {left}, {runner.display.left()}; the same command goes on")
        if runner.failed:
            report([f"failed: {', '.join(runner.failed)}; {left}"])
            return FAILED
        return 0


def _report(survey: Survey) -> None:
    """Write the report of what is finished, and print it."""
    from bhfl.report.command import write_report

    if runs := survey.finished():
        out = survey.plan.root / "report"
        text = write_report(list(runs), out, names=runs, **survey.plan.matrix.report)
        print(f"{text}\n{out / 'report.html'}")
