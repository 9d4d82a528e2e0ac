"""The hooks of callbacks are told where a user looks for them."""

import inspect
import re
from pathlib import Path

import pytest

from bhfl.callbacks import Callback

PAGE = (Path(__file__).parents[2] / "docs/howto/algorithm.md").read_text()
HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


@pytest.mark.parametrize("name", HOOKS)
def test_the_page_lists_every_hook_with_its_arguments(name: str) -> None:
    arguments = list(inspect.signature(getattr(Callback, name)).parameters)[1:]
    told = f"`{name}({', '.join(arguments)})`"
    assert told in PAGE, "where docs/howto/algorithm.md tells of callbacks"


def test_the_page_lists_no_hook_that_there_is_not() -> None:
    paragraph = re.search(r"^What only watches .*?\.\n", PAGE, re.S | re.M)
    assert paragraph
    assert re.findall(r"`(on_\w+)\(", paragraph[0]) == HOOKS
