"""A matrix of runs, methods by settings by seeds, and the options that it and the command line give
to them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bhfl.cli.reading import Layer, nested
from bhfl.plain import written

OPTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\+?")
_RESERVED = {
    "seed_everything": "seeds",
    "trainer.name": "the sweep",
    "trainer.default_root_dir": "--root",
    "ckpt_path": "the sweep",
    "config": "config of each method",
    "print_config": "the sweep",
}
EACH = "each"
"""A value of ``tune.setting``: every setting is tuned for itself."""


@dataclass(frozen=True)
class Option:
    """One option of a run.

    Attributes:
        key: Its name on the command line.
        value: A plain value, or text as it was typed.
        layer: The same as a layer of a configuration, with its place for messages.
    """

    key: str
    value: Any
    layer: Layer = field(compare=False)

    @classmethod
    def of(cls, key: str, value: Any) -> "Option":
        """An option that stands in no file."""
        return cls(key, value, Layer(nested(key, value), option=key))

    @property
    def word(self) -> str:
        """The option as an argument of ``bhfl fit``."""
        text = self.value
        if not isinstance(text, str):
            # YAML ends a scalar that stands alone with a line "...", and none inside a list
            text = written([text], flow=True).strip()[1:-1]
        return f"--{self.key}={text}"


def reserved(key: str, value: Any) -> Iterator[str]:
    """Problems of the options in ``key: value`` that neither a matrix nor a sweep must give."""
    for leaf, _ in leaves(key, value):
        if leaf in _RESERVED:
            yield f"cannot be used: {leaf} is given by {_RESERVED[leaf]}"


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The options that ``key: value`` gives, at any depth, and their values."""
    # model.init_args.lr and model.lr are two names of one option
    yield ".".join(part for part in key.split(".") if part != "init_args"), value
    for inner, item in value.items() if isinstance(value, Mapping) else ():
        yield from leaves(f"{key}.{inner}", item)


def undone(option: Option, key: str, value: Any) -> str:
    """What `option` gives, at any depth, and ``key: value`` after it gives again or would lose, as
    it names a class or a value for what that is a part of; empty if there is nothing. A fleet is
    such a value.
    """
    for (leaf, _), (other, item) in product(leaves(option.key, option.value), leaves(key, value)):
        whole = f"{other.removesuffix('.class_path')}."
        replaces = other == "clients" or not isinstance(item, Mapping)
        if f"{leaf}.".startswith(whole) and replaces:
            return leaf
    return ""


@dataclass(frozen=True)
class Tune:
    """An option whose value is chosen on the validation split, once a method, before its runs.

    Attributes:
        key: The option.
        values: The values that are tried.
        seeds: The seeds of the trials. A run that was a trial already, by setting, seed and value,
            is not run again.
        margin: How far the mean of a value may be behind the best after any seed; one that is
            further behind is not tried with the next seed.
        metric: A metric of the validation split; the highest wins.
        last: The number of last validations whose mean counts.
        setting: The setting that the option is tuned on, or `EACH`; empty if the matrix has none.
        options: Options of the trials alone, such as fewer rounds; a trial is then no run of the
            matrix.
        like: Methods that take the value of another one instead of being tuned, by name.
    """

    key: str
    values: list[Any]
    seeds: list[int]
    margin: float | None = None
    metric: str = "val/acc_avg"
    last: int = 1
    setting: str = ""
    options: list[Option] = field(default_factory=list)
    like: dict[str, str] = field(default_factory=dict)

    def written(self) -> dict[str, Any]:
        """All of it as plain values."""
        options = {option.key: option.value for option in self.options}
        return {**vars(self), "options": options}


@dataclass(frozen=True)
class Matrix:
    """What to run. Later options win over earlier ones: those of base, setting, method, command
    line, and the tuned one.

    Attributes:
        name: Run folders are ``<root>/<name>/[<setting>/]<method>/seed<seed>/version_N``, those of
            trials ``<root>/<name>/_tuning/[<setting>/]<method>/<value>/seed<seed>/version_N``,
            with the setting for `EACH`.
        base: Options of every run.
        seeds: The seeds of every setting and method.
        seeds_of: The seeds of methods that have seeds of their own.
        settings: The options of each setting by its name; one without a name if the matrix has
            none.
        methods: The options of each method by its name.
        configs: The configuration file of each method.
        tune: What is tuned, if anything is.
        first: Methods and settings whose runs come before the others; where both are named, the
            runs that are of both.
        report: The arguments of the report.
        typed: The options of the command line.
        results: The folder of finished runs that are kept, see `bhfl.sweep.results`; None if the
            matrix has none.
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
    seeds_of: dict[str, list[int]] = field(default_factory=dict)
    results: Path | None = None
