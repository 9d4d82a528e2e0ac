"""``bhfl report RUN...``: what finished and unfinished runs came to, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from bhfl.files import user_folder, user_path, write_text
from bhfl.report.arguments import Parser, errors_told, path_argument
from bhfl.report.forms import as_csv, console, markdown
from bhfl.report.goals import Goal
from bhfl.report.latex import as_latex
from bhfl.report.metric import Mode, check_known
from bhfl.report.page import page
from bhfl.report.paired import differences, ranks, read_order
from bhfl.report.published import Published, against, check_fleets, read_published
from bhfl.report.reading import TRIALS, Run, find_runs, read_run
from bhfl.report.rows import Section, sections, without_trials
from bhfl.report.spread import over_clients
from bhfl.report.tables import Table, results, until

_ABOUT = """Compare runs: a table on the console, and report.md, report.csv and report.html (one file with all pictures,
which loads nothing) in the folder --out. Runs that differ only in seed are one row; runs of other fleets, data, models
or links are in tables of their own. Runs that are not finished, or damaged, are marked and not compared."""  # noqa: E501


def write_report(  # noqa: PLR0913
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    names: Mapping[Path, str] | None = None,
    target: float | None = None,
    window: int = 1,
    baseline: str | None = None,
    metric: str | None = None,
    mode: Mode | None = None,
    latex: bool = False,
    order: str | Path | None = None,
    published: str | Path | None = None,
) -> str:
    """Write ``report.md``, ``report.csv`` and ``report.html``.

    Args:
        runs: Run folders, folders that hold some, or patterns. Trials of sweeps are left out,
            unless a path leads into their folder ``_tuning``.
        out: The folder for the files, which is made if it is missing.
        names: The name of each run folder's method, used where the names tell the methods apart;
            by default methods are called by their algorithms.
        target: An accuracy in (0, 1): the report also tells what it took to reach it.
        window: The number of successive validations whose median has to reach the target.
        baseline: The label of the row that speed is measured against; the first row of each table
            by default.
        metric: The tag that methods are compared by, such as ``val/loss``, by bit group where there
            are such; what the runs monitored by default, on the test split.
        mode: Whether it is better at its ``max`` or ``min``; as it was monitored by default.
        latex: Write ``report.tex`` too, with a booktabs table for each.
        order: A CSV with a column ``method``, the best first: Kendall's tau between that order and
            the ranks of the report is told.
        published: A CSV of figures by method, fleet and bits, see
            `bhfl.report.published.read_published`: Kendall's tau-b to them is told, with an
            interval.

    Returns:
        The tables, for the console.

    Raises:
        ValueError: A path holds no run, an option is out of range, no run logged the metric, it is
            that of one group, or `out` is no folder.
        OSError: A file of the report cannot be written.
    """
    if target is None and (window != 1 or baseline is not None):
        raise ValueError(
            f"--window and --baseline need --target, got --window {window} and --baseline "
            f"{baseline}"
        )
    user_folder("--out", out)
    goal = Goal(target, window, baseline) if target is not None else None
    read = [replace(read_run(run), name=(names or {}).get(run, "")) for run in find_runs(runs)]
    if not any(TRIALS in user_path(path).parts for path in runs):
        read = without_trials(read)
    found, ranked, figures = compared(read, metric, mode, order, published)
    if goal:
        goal.check_baseline(found)
    tables = [_tables(section, goal, figures) for section in found]
    # what is of all sections stands behind the last one's
    if ranked:
        tables[-1].append(ranked)
    flat = list(chain.from_iterable(tables))
    # nothing is written before all of it is known to be right
    out = user_path(out)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.md": "# Runs compared\n\n" + "\n\n".join(map(markdown, flat)) + "\n",
        "report.csv": as_csv(found, goal),
        "report.html": page(found, tables),
    }
    if latex:
        texts["report.tex"] = as_latex(flat)
    for name, text in texts.items():
        write_text(out / name, text)
    return "\n\n".join(map(console, flat))


def compared(
    runs: Sequence[Run],
    metric: str | None,
    mode: Mode | None,
    order: str | Path | None,
    published: str | Path | None,
    **_: object,
) -> tuple[list[Section], Table | None, Published]:
    """What `write_report` compares: the sections, the ranks in them, and the published figures. It
    takes its arguments, of which others are passed over.

    Raises:
        ValueError: What is asked for is nothing that these runs have.
        OSError: A file cannot be read.
    """
    if metric is not None:
        check_known(metric, runs)
    found = sections(runs, metric, mode)
    figures = {} if published is None else read_published(published)
    if figures:
        check_fleets(figures, found)
    return found, ranks(found, None if order is None else read_order(order)), figures


def _tables(section: Section, goal: Goal | None, published: Published) -> list[Table]:
    """The tables of a section."""
    more = [differences(section), over_clients(section)]
    more += [until(section, goal)] if goal else []
    return [results(section), *filter(None, [*more, against(section, published)])]


def main(args: Sequence[str] | None = None) -> int:
    """Parse the command line, write the report and print the tables.

    Returns:
        The exit code.

    Raises:
        SystemExit: The arguments cannot be used, or the files cannot be written.
    """
    parser = _parser()
    options = vars(parser.parse_args(args))
    with errors_told(parser):
        text = write_report(**options)
        # the disk of a log may be full
        print(text, flush=True)
    return 0


def _parser() -> Parser:
    """The arguments of the command, which are those of `write_report`."""
    parser = Parser(prog="bhfl report", description=_ABOUT, allow_abbrev=False)
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
    parser.add_argument(
        "--metric", metavar="TAG", help="what to compare by (default: what the runs monitored)"
    )
    parser.add_argument("--mode", choices=("max", "min"), help="the end at which it is the best")
    parser.add_argument("--latex", action="store_true", help="write report.tex too (booktabs)")
    parser.add_argument(
        "--order",
        type=path_argument,
        metavar="FILE",
        help="CSV with a column method, the best first: tell Kendall's tau to it",
    )
    parser.add_argument(
        "--published",
        type=path_argument,
        metavar="FILE",
        help="CSV of figures by method, fleet and bits: tell Kendall's tau-b to them",
    )
    return parser
