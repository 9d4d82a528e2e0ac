"""What ``bhfl sweep`` does with a plan: it lists its runs, or runs what is missing and reports."""

import time
from collections import Counter

from bhfl.cli.exits import report
from bhfl.report.command import write_report
from bhfl.sweep.check import Configs
from bhfl.sweep.plan import Plan
from bhfl.sweep.processes import Processes, locked
from bhfl.sweep.request import Request
from bhfl.sweep.runner import Runner
from bhfl.sweep.survey import Survey

FAILED = 1
ENDING_SECONDS = 20.0
"""What a sweep needs to end: its runs close their files, and the report is written. It is a tenth
of the sweep's minutes if that is less.
"""


def list_runs(plan: Plan) -> int:
    """Print each run with its state; the exit code."""
    states = Survey(plan, Configs(machine=False)).states()
    for name, state in states.items():
        print(f"{state:<8}  {plan.root / name}")
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    print(f"{len(states)} runs: {counts}")
    return 0


def run_missing(plan: Plan, request: Request, begun: float) -> int:
    """Run what is missing, and report what is finished; the exit code.

    Args:
        plan: The runs.
        request: What the command line asks for.
        begun: When the command began, as of ``time.monotonic``.

    Raises:
        ConfigError: A configuration cannot be used, a run folder was made with another one, or
            another sweep is at work; nothing has been run by then.
    """
    # nothing is read before other sweeps are kept out, as they would change it
    with locked(plan.root) as lock:
        survey = Survey(plan, Configs(machine=True))
        runner = Runner(survey, Processes(lock), request.jobs)
        until = begun + 60 * request.minutes - min(ENDING_SECONDS, 6 * request.minutes)
        runner.run(until)
        if runs := survey.finished():
            out = plan.root / "report"
            text = write_report(list(runs), out, names=runs, **plan.matrix.report)
            print(f"{text}\n{out / 'report.html'}")
        left = f"{runner.left} of {len(runner.sizes)} runs left"
        if runner.left and time.monotonic() >= until:
            when = f"stopped after {request.minutes:g} minutes"
            print(f"{when}: {left}, {runner.display.left()}; the same command goes on")
        if runner.failed:
            report([f"failed: {', '.join(runner.failed)}; {left}"])
            return FAILED
        return 0
