"""YAML and JSON that may come from elsewhere, as plain values: no text of a few bytes may unfold to
gigabytes.
"""

import json
from typing import Any

import yaml

MAX_BYTES = 1 << 20
"""The size of a YAML file at most, and of all its text, that repeated by aliases counted again."""
MAX_NODES = 50_000
"""Values of a YAML file, those repeated by aliases counted again."""
MAX_DEPTH = 50
MAX_SCALAR = 100
"""Characters of a YAML number or date: Python's own reading of very long ones takes minutes."""

_TOO_DEEP = f"must be nested at most {MAX_DEPTH} deep"
_TEXT = "tag:yaml.org,2002:str"


class TooLargeError(ValueError):
    """What a text would unfold to is too large."""


class Unfolded:
    """Counts what YAML comes to without its aliases, node by node."""

    def __init__(self) -> None:
        self.values = self.characters = 0

    def add(self, node: yaml.Node, depth: int) -> None:
        """Count a node that stands `depth` deep; aliases may lead to it again, and inside of
        itself.

        Raises:
            TooLargeError: It is one too many, or too deep.
        """
        self.values += 1
        self.characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self.values > MAX_NODES:
            raise TooLargeError(
                f"must hold at most {MAX_NODES:,} values, those repeated by aliases counted"
            )
        if self.characters > MAX_BYTES:
            raise TooLargeError(
                f"must hold at most {MAX_BYTES:,} characters, those repeated by aliases counted"
            )
        if depth > MAX_DEPTH:
            raise TooLargeError(_TOO_DEEP)
        if isinstance(node, yaml.ScalarNode) and node.tag != _TEXT and len(node.value) > MAX_SCALAR:
            raise TooLargeError(f"must hold no number of more than {MAX_SCALAR} characters")


def check_depth(text: str, loader: Any) -> None:
    """Refuse deep nesting while it is only read event by event: libyaml builds its tree by
    recursion in C.

    Raises:
        TooLargeError: It is nested too deep.
        yaml.YAMLError: It is no YAML.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(
                event, yaml.CollectionEndEvent
            )
            if depth > MAX_DEPTH:
                raise TooLargeError(_TOO_DEEP)
    except (
        yaml.scanner.ScannerError
    ) as error:  # newer libyaml has a limit too, and looks ahead of its events
        if "maximum nesting depth" in str(error):
            raise TooLargeError(_TOO_DEEP) from error
        raise


def read_json(content: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is no JSON, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON must not be nested so deep") from error
