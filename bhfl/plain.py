"""YAML and JSON that may come from elsewhere, as plain values: no text of a few bytes may unfold to
gigabytes. And which text without quotes is a number, a truth value or null, for reading and for
writing.

Readers of YAML disagree about ``1e3``, ``1_0``, ``+.5``, ``1:30`` or ``on``. Here is the union of
what PyYAML, jsonargparse and YAML 1.2 take for anything but text: of such text, the reader takes
what all mean alike and refuses the rest, and the writer puts all of it in quotes.
"""

import json
import re
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


# ---- scalars -------------------------------------------------------------------------------------

_DIGITS = "[0-9][0-9_]*"
_NUMBERS = (
    rf"[-+]?(?:{_DIGITS}\.[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?",
    rf"[-+]?{_DIGITS}[eE][-+]?[0-9]+",
    rf"[-+]?{_DIGITS}(?::[0-5]?[0-9])+\.[0-9_]*",
    r"[-+]?\.(?i:inf)",
    r"\.(?i:nan)",
)
_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(f"(?:{'|'.join(_NUMBERS)})$"),
    list("-+0123456789."),
)

_PLAIN_NUMBERS = (
    r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
    r"[-+]?[0-9]+[eE][-+]?[0-9]+",
    *_NUMBERS[-2:],
)
UNAMBIGUOUS = {
    "bool": (re.compile("(?i:true|false)"), "true or false"),
    "int": (re.compile("[-+]?(0|[1-9][0-9]*)"), "decimal digits alone"),
    "float": (re.compile("|".join(_PLAIN_NUMBERS)), "digits with a point or an exponent alone"),
}
"""What all readers take for the same value, and how to write it, by kind."""


def _resolvers() -> dict[str, list[tuple[str, Any]]]:
    """PyYAML's own rules by first character, but for dates and floats."""
    found = {}
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept = [rule for rule in rules if not rule[0].endswith((":timestamp", ":float"))]
        found[first] = kept
    return found


# PyYAML may have been built without libyaml
class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes dates for text, and for a number whatever any reader takes for one."""

    yaml_implicit_resolvers = _resolvers()


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes for text whatever is not the same to all readers."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Puts in quotes what any reader would take for something else than text."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # line breaks, which PyYAML writes as they are
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)
_Dumper.add_representer(str, _represent_text)
for _kind, (_rule, _) in UNAMBIGUOUS.items():
    _PlainLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_rule.pattern})$"), None
    )
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile("(?:~|null|Null|NULL|)$"), None
)


def plain(text: str) -> Any:
    """The value of `text` as YAML: text itself wherever readers could disagree, and where it is a
    mere comment.

    Raises:
        yaml.YAMLError: It is no YAML.
    """
    try:
        value = _PlainLoader(text).get_single_data()
    except (ValueError, KeyError, AttributeError) as error:
        # a number of too many digits, or text under a tag
        raise yaml.YAMLError(str(error)) from error
    return text if value is None and text.strip().lower() not in ("null", "~") else value


def written(values: Any, flow: bool = False) -> str:
    """`values` as YAML, whose texts are texts to every reader; in one line with `flow`.

    Raises:
        yaml.YAMLError: They hold what YAML cannot say.
    """
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        default_flow_style=flow,
        allow_unicode=True,
        sort_keys=False,
        width=10**6 if flow else 80,
    )
    return text
