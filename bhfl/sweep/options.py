"""Options of runs, as a matrix or the command line gives them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bhfl.cli.reading import Layer
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
        layer: The same for messages about it, with its place.
    """

    key: str
    value: Any
    layer: Layer = field(compare=False)

    @property
    def word(self) -> str:
        """The argument of ``bhfl fit``."""
        text = self.value
        if not isinstance(text, str):
            text = written([text], flow=True).strip()[1:-1]
        return f"--{self.key}={text}"


def reserved(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """The options in `value` that are not a matrix's to give, and what gives them."""
    for leaf in leaves(key, value):
        if leaf in _RESERVED:
            yield leaf, _RESERVED[leaf]


def leaves(key: str, value: Any) -> Iterator[str]:
    """The options that ``key: value`` gives, without ``init_args``."""
    yield ".".join(part for part in key.split(".") if part != "init_args")
    for inner, item in value.items() if isinstance(value, Mapping) else ():
        yield from leaves(f"{key}.{inner}", item)
