"""The layers of a configuration, one over the other, as one mapping that a parser reads once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bhfl.cli.reading import Keys, Layer, Text


@dataclass
class Merge:
    """Lays a layer over what earlier ones came to.

    What may be merged is found out while the layer is checked. Places are given without
    ``init_args``.

    Attributes:
        layer: The later settings, which win.
        meanings: Texts that were typed, to the values that they mean.
        sections: The places of mappings from options, which are merged key by key; any other
            mapping is a value, which replaces the earlier one.
        named: The places where the layer names a class.
        other: Those of them where another class stood, whose options are not taken over.
    """

    layer: Layer
    meanings: dict[Text, Any] = field(default_factory=dict)
    sections: set[Keys] = field(default_factory=set)
    named: set[Keys] = field(default_factory=set)
    other: set[Keys] = field(default_factory=set)

    def __call__(self, old: Any, new: Any, place: Keys = ()) -> Any:
        """`new` over `old`, which stand at `place`."""
        if isinstance(new, Text):
            new = self.meanings.get(new, str(new))
        if place in self.named and isinstance(new, str):
            new = {"class_path": new}
        # what is typed as --a.b leads through mappings of any kind
        leads_on = len(place) < len(self.layer.path)
        if isinstance(new, list):
            return self._added(old, new, place)
        if not isinstance(new, dict) or not (leads_on or place in self.sections | self.named):
            return new
        if leads_on and isinstance(old, list) and old:
            return [*old[:-1], self(old[-1], new, place)]
        return self._mapping(old, new, place)

    def _added(self, old: Any, new: list[Any], place: Keys) -> list[Any]:
        """A list in place of the earlier one, or after it where it is given by ``--a.b+``."""
        if not self.layer.option.endswith("+") or place != self.layer.path:
            return new
        items = [self(None, item, (*place, f"[{i}]")) for i, item in enumerate(new)]
        return [*old, *items] if isinstance(old, list) else items

    def _mapping(self, old: Any, new: dict[Any, Any], place: Keys) -> dict[Any, Any]:
        """Options over the earlier ones of the same section or object."""
        if isinstance(old, str):
            old = {"class_path": old}
        if not isinstance(old, dict) or place in self.other:
            old = {}
        # one of them may leave out the word init_args
        if is_spelled_out(old) and not is_spelled_out(new):
            new = {"init_args": new}
        if old and is_spelled_out(new) and not is_spelled_out(old):
            old = {"init_args": old}
        found = dict(old)
        for key, item in new.items():
            inner = place if key == "init_args" else (*place, key)
            found[key] = self(old.get(key), item, inner)
        return found


def is_spelled_out(values: Mapping[Any, Any]) -> bool:
    """Whether an object is given by its class and ``init_args``, not by its options alone."""
    return "class_path" in values or "init_args" in values
