"""What a run was told, as it stands on disk: the options of each role, and how two runs differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bhfl.settings import Role

Told = dict[str, dict[str, Any]]
"""The name of each role, to the options that have it: dotted key, such as ``trainer.max_rounds`` or
``algorithm.mask.tau``, to a plain value. It is what ``settings.json`` of a run folder holds.
"""
SETTINGS = "settings"
"""The name of that file, without its end."""


def told_of(told: Mapping[str, Any], roles: Iterable[Role]) -> dict[str, Any]:
    """The options of some roles, by key; whatever else a file may hold is passed over."""
    found: dict[str, Any] = {}
    for role in roles:
        options = told.get(role.value)
        found |= options if isinstance(options, Mapping) else {}
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], roles: Sequence[Role]) -> list[str]:
    """The options of some roles that differ between two runs, as ``key: old -> new``."""
    before = told_of(old, roles)
    after = told_of(new, roles)
    return [
        f"{key}: {before.get(key, 'absent')!r} -> {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
