"""The hooks of callbacks are told where a user looks for them."""

import inspect
import re
from pathlib import Path

import pytest

from bhfl.callbacks import Callback

README = (Path(__file__).parents[2] / "README.md").read_text()
HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


@pytest.mark.parametrize("name", HOOKS)
def test_the_readme_lists_every_hook_with_its_arguments(name: str) -> None:
    arguments = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    told = f"`{name}({', '.join(arguments)})`"
    assert told in README, "where README.md tells of callbacks"


def test_the_readme_lists_no_hook_that_there_is_not() -> None:
    paragraph = re.search(r"^A callback \(`trainer\.callbacks`\).*?\n\n", README, re.S | re.M)
    assert paragraph
    assert re.findall(r"`(on_\w+)\(", paragraph[0]) == HOOKS
