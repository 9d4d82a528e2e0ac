"""A matrix of runs: methods by settings by seeds."""

from dataclasses import dataclass
from typing import Any

from bhfl.sweep.options import Option

EACH = "each"
"""A value of ``tune.setting``: every setting is tuned for itself."""


@dataclass(frozen=True)
class Tune:
    """A value that is chosen on the validation split, once a method, before its runs.

    Attributes:
        key: The option.
        values: The values that are tried.
        seeds: The seeds of the trials. A run that was a trial already, by setting, seed and value,
            is not run again.
        margin: A value whose mean after any seed is further than this behind the best is not tried
            with the next seed.
        metric: A metric of the validation split; the highest wins.
        last: The mean of so many last validations counts.
        setting: The setting that it is tuned on, or `EACH`; empty where there are none.
    """

    key: str
    values: list[Any]
    seeds: list[int]
    margin: float | None = None
    metric: str = "val/acc_avg"
    last: int = 1
    setting: str = ""


@dataclass(frozen=True)
class Matrix:
    """What to run. Later options win: those of base, setting, method, command line, and the tuned
    one.

    Attributes:
        name: Run folders are ``<root>/<name>/[<setting>/]<method>/seed<seed>/version_N``, those of
            trials ``<root>/<name>/_tuning/[<setting>/]<method>/<value>/seed<seed>/version_N``,
            with the setting for `EACH`.
        base: Options of every run.
        seeds: The seeds of every setting and method.
        settings: Options by name; a nameless one where the matrix has none.
        methods: Options by name.
        configs: Configuration file of each method.
        tune: What is tuned, if anything is.
        first: Methods and settings whose runs come before the others; where both are named, runs of
            both kinds.
        report: Arguments of the report.
        typed: Options of the command line.
    """

    name: str
    base: list[Option]
    seeds: list[int]
    settings: dict[str, list[Option]]
    methods: dict[str, list[Option]]
    configs: dict[str, str]
    tune: Tune | None
    first: list[str]
    report: dict[str, Any]
    typed: list[Option]
