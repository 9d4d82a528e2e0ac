"""Options of runs, as a matrix or the command line gives them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bhfl.cli.reading import Layer, nested
from bhfl.cli.scalars import written

OPTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\+?")
_RESERVED = {
    "seed_everything": "seeds",
    "trainer.name": "the sweep",
    "trainer.default_root_dir": "--root",
    "ckpt_path": "the sweep",
    "config": "config of each method",
    "print_config": "the sweep",
}


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


def reserved(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The options in ``key: value`` that a matrix must not give, and what gives them."""
    for leaf, _ in leaves(key, value):
        if leaf in _RESERVED:
            yield leaf, _RESERVED[leaf]


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The options that ``key: value`` gives, at any depth, and their values."""
    # model.init_args.lr and model.lr are two names of one option
    yield ".".join(part for part in key.split(".") if part != "init_args"), value
    for inner, item in value.items() if isinstance(value, Mapping) else ():
        yield from leaves(f"{key}.{inner}", item)
