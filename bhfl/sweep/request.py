"""The command line of ``bhfl sweep``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bhfl.checks import checked, count, positive, shown, suggestion
from bhfl.cli.reading import ConfigError, Text, options
from bhfl.files import user_path
from bhfl.settings import LARGEST_SEED
from bhfl.sweep.matrix import OPTION, Option, reserved

HELP = """usage: bhfl sweep MATRIX.yaml [--option value ...]

Runs a matrix: methods by settings by seeds. What is finished is not run again, and what was cut off goes on; a sweep
can be killed at any moment and started again. Ends in a report.

options:
  --jobs N           runs at a time, of trainer.threads threads each (1)
  --minutes M        stop after so many minutes, and say what is left; the same command goes on
  --only A,B         these methods or settings alone, in the report too
  --seeds 0,1        in place of those of the matrix
  --root DIR         run folders are DIR/<name of the matrix>/... (runs)
  --dry_run          check all configurations and list the runs, with what is done, cut off or missing
  --data.archive F   any option of bhfl fit, for all runs

a matrix:
  base: {trainer.max_rounds: 10}                       # options of every run
  seeds: [0, 1, 2]
  settings:                                            # if any
    half: {clients: {ternary: 5, float32: 5}}
  methods:                                             # config: relative to the matrix, or as digits/fedavg
    FedAvg: {config: ../fedavg.yaml}
    ProWD-mask: {config: ../prowd.yaml, algorithm.dequantizer: null}
  tune: {key: model.optimizer.lr, values: [0.02, 0.05, 0.1], seeds: [0, 1, 2], setting: half}    # if anything
  results: results/half                                # finished runs that are kept, and not run again
  first: [FedAvg]                                      # methods and settings that are run before the others
  report: {target: 0.5, window: 3}                     # what it takes until 3 validations have a median of 0.5

Exit codes: 0 done or out of time, 1 some runs failed, 2 bad matrix or configuration, 130 and 143 stopped by a signal.
"""  # noqa: E501

_OF_RUNS = ("clients", "algorithm", "model", "data", "trainer", "seed_everything")


@dataclass
class Request:
    """What the command line asks for; see `HELP`."""

    matrix: str | None = None
    jobs: int = 1
    minutes: float = math.inf
    only: list[str] = field(default_factory=list)
    seeds: list[int] | None = None
    root: Path = Path("runs")
    dry_run: bool = False
    typed: list[Option] = field(default_factory=list)


def read_request(args: Sequence[str]) -> Request:
    """The request that the arguments make.

    Raises:
        ConfigError: The arguments cannot be used; it lists everything that is wrong with them.
    """
    request = Request()
    problems = []
    for name, value in options(args):
        try:
            _take(request, name, value)
        except ValueError as error:
            problems.append(str(error))
    if request.matrix is None:
        problems.append("a matrix is missing: bhfl sweep MATRIX.yaml")
    if problems:
        raise ConfigError(*problems)
    return request


def _take(request: Request, name: str, value: str | None) -> None:
    """Take up one option of the command line.

    Args:
        request: What is filled in.
        name: The name of the option; empty for an argument that is not an option.
        value: What was given for it.

    Raises:
        ValueError: The option cannot be used.
    """
    if name == "" and request.matrix is None:
        request.matrix = value
    elif name == "":
        raise ValueError(f"one matrix is swept at a time, and {value!r} is another")
    elif name == "dry_run" and value is None:
        request.dry_run = True
    elif name == "dry_run":
        raise ValueError(f"--dry_run takes no value, got {value!r}")
    elif name in _OWN:
        parse, rule = _OWN[name]
        try:
            setattr(request, name, parse(value or ""))
        except ValueError:
            raise ValueError(f"--{name} must be {rule}, got {shown(value)}") from None
    elif OPTION.fullmatch(name) and name.rstrip("+").split(".")[0] in _OF_RUNS:
        request.typed.append(_typed(name, value))
    else:
        raise ValueError(
            f"--{name} is an unknown option of sweep"
            f"{suggestion(name, (*_OWN, 'dry_run', *_OF_RUNS))}"
        )


def _typed(name: str, value: str | None) -> Option:
    """An option of all runs."""
    if value is None:
        raise ValueError(f"--{name} needs a value")
    for why in reserved(name, value):
        raise ValueError(f"--{name} {why}")
    return Option.of(name, Text(value))


def _distinct(text: str) -> list[str]:
    words = text.split(",")
    # the caller states the rule
    if "" in words or len(set(words)) < len(words):
        raise ValueError
    return words


def _seeds(text: str) -> list[int]:
    seeds = [checked("", int(word), count(0, LARGEST_SEED)) for word in _distinct(text)]
    # 1 and 01 are distinct words, and one seed
    if len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


_OWN: dict[str, tuple[Callable[[str], Any], str]] = {
    "jobs": (lambda text: checked("", int(text), count(1)), "an integer from 1"),
    "minutes": (lambda text: checked("", float(text), positive), "a positive number"),
    "only": (_distinct, "distinct methods and settings with commas between them"),
    "seeds": (_seeds, f"distinct integers from 0 to {LARGEST_SEED} with commas between them"),
    "root": (user_path, "a folder"),
}
"""Options of the sweep itself: what reads their text, and the rule that messages state."""
