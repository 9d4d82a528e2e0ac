"""``bhfl report RUN...``: what finished and unfinished runs came to, side by side."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from bhfl.files import user_path, write_text
from bhfl.report.arguments import errors_told, path_argument
from bhfl.report.forms import as_csv, console, markdown
from bhfl.report.goals import Goal
from bhfl.report.page import page
from bhfl.report.reading import find_runs, read_run
from bhfl.report.rows import sections
from bhfl.report.tables import results, until

_ABOUT = """Compare runs: a table on the console, and report.md, report.csv and report.html (one file with all pictures,
which loads nothing) in the folder --out. Runs that differ only in seed are one row; runs of other fleets, data, models
or links are in tables of their own. Runs that are not finished, or damaged, are marked and not compared."""  # noqa: E501


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    names: Mapping[Path, str] | None = None,
    target: float | None = None,
    window: int = 1,
    baseline: str | None = None,
) -> str:
    """Write ``report.md``, ``report.csv`` and ``report.html``.

    Args:
        runs: Run folders, folders that hold some, or patterns.
        out: The folder for the files, which is made if it is missing.
        names: The name of each run folder's method, used where the names tell the methods apart;
            by default methods are called by their algorithms.
        target: An accuracy in (0, 1): the report also tells what it took to reach it.
        window: The number of successive validations whose median has to reach the target.
        baseline: The label of the row that speed is measured against; the first row of each table
            by default.

    Returns:
        The tables, for the console.

    Raises:
        ValueError: A path holds no run, or an option is out of range.
        OSError: `out` cannot be written.
    """
    if target is None and (window != 1 or baseline is not None):
        raise ValueError(
            f"--window and --baseline need --target, got --window {window} and --baseline "
            f"{baseline}"
        )
    goal = Goal(target, window, baseline) if target is not None else None
    names = names or {}
    read = [replace(read_run(run), name=names.get(run, "")) for run in find_runs(runs)]
    found = sections(read)
    if goal:
        goal.check_baseline(found)
    tables = []
    for section in found:
        goals = [until(section, goal)] if goal else []
        tables.append([results(section), *filter(None, goals)])
    flat = list(chain.from_iterable(tables))
    # nothing is written before all of it is known to be right
    out = user_path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.md": "# Runs compared\n\n" + "\n\n".join(map(markdown, flat)) + "\n",
        "report.csv": as_csv(found, goal),
        "report.html": page(found, tables),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return "\n\n".join(map(console, flat))


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line, write the report and print the tables.

    Returns:
        The exit code.

    Raises:
        SystemExit: The arguments cannot be used, or the files cannot be written.
    """
    parser = argparse.ArgumentParser(prog="bhfl report", description=_ABOUT)
    parser.add_argument(
        "runs",
        nargs="+",
        type=path_argument,
        metavar="RUN",
        help="run folders, folders of runs, or patterns",
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=Path("report"),
        help="folder for the files (default: report)",
    )
    parser.add_argument(
        "--target", type=float, help="accuracy in (0, 1): tell what it took to reach it"
    )
    parser.add_argument(
        "--window", type=int, default=1, help="validations whose median must reach it (default: 1)"
    )
    parser.add_argument(
        "--baseline", metavar="LABEL", help="row to measure speed against (default: the first)"
    )
    options = vars(parser.parse_args(args))
    with errors_told(parser):
        text = write_report(options.pop("runs"), options.pop("out"), **options)
    print(text)
    return 0
