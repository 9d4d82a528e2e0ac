"""Run folders as records: what each run was told to do, what it logged, what came of it, and what
is wrong with its files.

Nothing here trusts a file: a run may be damaged, killed, or being written while it is read.
"""

import csv
import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from bhfl.checks import is_integer, is_number, printable, refuse
from bhfl.files import matching, read_limited, user_path, walk
from bhfl.plain import MAX_BYTES, read_json
from bhfl.report.settings import SEED
from bhfl.settings import Role
from bhfl.tags import ACCURACIES
from bhfl.told import SETTINGS, told_of

TRIALS = "_tuning"
"""The folder of a sweep's runs that tune an option."""
MARKERS = ("rounds.jsonl", "summary.json", "env.json")
"""A folder that holds one of them is a run; the last is there before the first round is done."""
CUMULATIVE = ("comm/uplink_MB", "comm/downlink_MB", "time/simulated_s")
"""Tags that count from the first round on."""
PROBLEMS = "problems"
"""The entry of a row that says what became of clients, in words."""
MAX_SUMMARY_BYTES = 4 * 2**20
MAX_ROUNDS_BYTES = 256 * 2**20
MAX_LINE_BYTES = 4 * 2**20
MAX_ROUND = 2**31


@dataclass(frozen=True)
class Run:
    """One run folder.

    Args:
        folder: The folder itself.
        told: What the run was told, as its ``settings.json`` has it; empty if that cannot be read.
        rounds: The rows of all whole rounds, by tag; not that of validation before the first one.
        summary: What came of the run; empty while it is not finished.
        faults: What is wrong with its files, in words.
        name: What its method is called, if it was given a name.
        first: The row of validation before the first round; empty where there is none.
    """

    folder: Path
    told: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    faults: tuple[str, ...] = ()
    name: str = ""
    first: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and its rows are those of the end."""
        return not self.missing

    @property
    def missing(self) -> str:
        """Why the run does not count as finished; empty for one that does."""
        done = self.num_rounds
        if not self.summary:
            total = self.max_rounds
            return f"{done} of {total} rounds" if total else f"{done} rounds"
        if failed := self.summary.get("failed"):
            return f"after {done} rounds, {str(failed).splitlines()[0]:.200}"
        # a damaged or edited file of rows does not make the figures of the end
        said = self.summary.get("rounds")
        if done == said:
            return ""
        return f"{done} rounds in rounds.jsonl, {str(said)[:20]} in summary.json"

    @property
    def num_rounds(self) -> int:
        """The number of the last whole round."""
        return int(self.rounds[-1]["round"]) if self.rounds else 0

    @property
    def max_rounds(self) -> int | None:
        """The number of rounds that the run was to have; None where it is not known."""
        total = told_of(self.told, Role).get("trainer.max_rounds")
        return total if is_integer(total) else None

    @property
    def seed(self) -> int | None:
        """The seed of the initial weights and of every draw; None where it is not known."""
        seed = told_of(self.told, Role).get(SEED)
        return seed if is_integer(seed) else None

    @cached_property
    def tags(self) -> list[str]:
        """The tags of its rounds, in the order in which they came."""
        return list(dict.fromkeys(chain.from_iterable(self.rounds)))

    @cached_property
    def metric(self) -> str:
        """What the run calls its accuracy."""
        tags = {*self.metrics, *self.tags}
        found = [name for name in ACCURACIES if {f"val/{name}_avg", f"test/{name}_avg"} & tags]
        return found[0] if found else ACCURACIES[0]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The last measurement, on the test split."""
        return dict(self.summary.get("metrics", {}))

    @cached_property
    def groups(self) -> list[str]:
        """The bit groups, in the fleet's order."""
        name = self.metric
        if f"val/{name}_avg" not in self.tags:
            # a model without an accuracy
            ends = [tag for tag in self.tags if re.fullmatch("val/.+_avg", tag)]
            name = ends[0][4:-4] if ends else name
        prefix = f"val/{name}_"
        measured = [tag.removeprefix(prefix) for tag in self.tags if tag.startswith(prefix)]
        # a metric whose name begins alike looks like a group, but no bytes were counted for it
        counted = self.summary.get("bytes")
        known = counted if isinstance(counted, Mapping) else measured
        groups = [group for group in measured if group in known and group not in ("avg", "min")]
        return [group for group in groups if not group.startswith("local_")]

    def series(self, tag: str, first: bool = False) -> dict[int, float]:
        """The values of a tag by round, of the rounds that have a finite one; on demand with that
        of validation before the `first` round, as round 0.
        """
        rows = [self.first, *self.rounds] if first and self.first else self.rounds
        values = {int(row["round"]): number(row.get(tag)) for row in rows}
        return {round: value for round, value in values.items() if math.isfinite(value)}

    def total(self, tag: str) -> float:
        """The sum of a tag over rounds."""
        return sum(self.series(tag).values())

    def last(self, tag: str) -> float:
        """The last finite value of a tag; nan where there is none."""
        return next(reversed(self.series(tag).values()), math.nan)


def number(value: Any) -> float:
    """`value` if it is a finite number, else nan."""
    # so far below the largest float that sums and squares over seeds stay finite
    return float(value) if is_number(value) and abs(value) < 1e300 else math.nan


def _printable(value: Any) -> Any:
    """A value of JSON whose text is all printable, keys too."""
    # names of files from elsewhere end on a terminal, which must not take them for commands
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def read_table(path: str | Path, rule: str) -> list[dict[str, Any]]:
    """The rows of a CSV that a user has written.

    Args:
        path: The file.
        rule: What it must be, for the message.

    Raises:
        ValueError: It is no CSV.
        OSError: It cannot be read.
    """
    # spreadsheets write a byte order mark
    text = read_limited(user_path(path), MAX_BYTES).decode("utf-8-sig", errors="replace")
    try:
        return list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise ValueError(f"{rule}, got {path}: {error}") from error


# ---- folders -------------------------------------------------------------------------------------


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """The run folders that `paths` mean, each once: paths in their order, versions by number.

    Args:
        paths: Run folders, folders that hold run folders at any depth, and patterns such as
            ``runs/digits-*``.

    Raises:
        ValueError: Some of the paths hold no run; the message lists all of them, one a line.
    """
    found: dict[Path, Path] = {}
    problems = []
    for path in map(user_path, paths):
        matches = [path] if path.exists() else sorted(matching(path), key=_natural)
        runs = list(chain.from_iterable(map(_runs_below, matches)))
        if not runs:
            why = "no run in it" if matches else "no such folder"
            marks = " or ".join(MARKERS)
            problems.append(f"{path}: {why}; RUN must be a run folder (with {marks}) or hold some")
        for run in runs:
            # links and overlapping paths may lead to a run twice
            found.setdefault(run.resolve(), run)
    if not paths:
        problems.append("RUN is missing: a run folder, or one that holds some")
    refuse(problems)
    return list(found.values())


def with_runs_below(paths: Sequence[Path]) -> list[Path]:
    """The runs at or below each of `paths`; a path without runs stands for itself."""
    found = []
    for path in paths:
        found += list(_runs_below(path)) or [path]
    return found


def _runs_below(folder: Path) -> Iterator[Path]:
    """The runs at or below `folder`, through links too."""
    if not folder.is_dir():
        return
    for place, folders, files in walk(folder, once=True, on_error=_passed_over):
        if set(MARKERS) & set(files):
            # whatever lies inside of a run is its own
            folders.clear()
            yield place
        folders.sort(key=_natural)


def _passed_over(error: OSError) -> None:
    warnings.warn(f"{printable(error.filename)} is passed over: {error.strerror}", stacklevel=2)


def _natural(name: str | Path) -> list[tuple[str, int]]:
    """A key that sorts ``version_10`` after ``version_9``."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d*)", str(name))]


# ---- files ---------------------------------------------------------------------------------------


def read_run(folder: Path) -> Run:
    """The record of one run folder; what is wrong with its files becomes a fault, and no error."""
    faults: list[str] = []
    # the summary is read first: where it is written already, so are all rows
    summary = _mapping(folder / "summary.json", MAX_SUMMARY_BYTES, faults)
    if not isinstance(summary.get("metrics", {}), dict):
        faults.append("summary.json is damaged: its metrics are no mapping")
        summary = {}
    rounds = _rounds(folder / "rounds.jsonl", faults)
    path = folder / f"{SETTINGS}.json"
    told = _mapping(path, MAX_BYTES, faults)
    # a run may lack them that was made before there were such files, or moved in part
    if not path.exists():
        faults.append(f"no {path.name}: its settings are unknown")
    first = rounds.pop(0) if rounds and rounds[0]["round"] == 0 else {}
    return Run(folder, told, rounds, summary, tuple(faults), first=first)


def _text(path: Path, most: int, faults: list[str]) -> str | None:
    """What a file holds; None where it is missing, or cannot be read."""
    try:
        return read_limited(path, most).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        faults.append(f"{path.name} cannot be read: {error.strerror}")
        return None


def _mapping(path: Path, most: int, faults: list[str]) -> dict[str, Any]:
    """The mapping in a file of JSON; empty where it is missing or damaged."""
    text = _text(path, most, faults)
    if text is None:
        return {}
    try:
        found = _printable(read_json(text))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found:
        faults.append(f"{path.name} is damaged")
        return {}
    return found


def _rounds(path: Path, faults: list[str]) -> list[dict[str, Any]]:
    """The rows up to the first line that does not hold a later round."""
    rows: list[dict[str, Any]] = []
    tags: dict[str, str] = {}
    lines = (_text(path, MAX_ROUNDS_BYTES, faults) or "").split("\n")
    # a line without an end is being written, which is not a fault
    for place, line in enumerate(lines[:-1], 1):
        row = _row(line, tags)
        before: Mapping[str, Any] = rows[-1] if rows else {"round": -1}
        # a later round, in which nothing that only grows has fallen
        grows = all(row.get(tag, 0) >= before.get(tag, 0) for tag in CUMULATIVE)
        if not row or row["round"] <= before["round"] or not grows:
            faults.append(f"line {place} of {path.name} is damaged: it is read up to there")
            return rows
        rows.append(row)
    return rows


def _row(line: str, tags: dict[str, str]) -> dict[str, Any]:
    """The figures of a round, nan for what is not a number; empty where the line has no round.

    Args:
        line: A line of the file.
        tags: Printable tags by their tags; those of the line are added, so that all rows share
            them.
    """
    try:
        found: Any = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return {}
    round: Any = found.get("round") if isinstance(found, dict) else None
    if not is_integer(round) or not 0 <= round <= MAX_ROUND:
        return {}
    row = {tags.setdefault(tag, printable(tag)): number(value) for tag, value in found.items()}
    # the one entry that is text
    if isinstance(problems := found.get(PROBLEMS), list):
        row[PROBLEMS] = _printable(problems)
    return row | {"round": round}
