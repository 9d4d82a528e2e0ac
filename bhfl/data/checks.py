"""Checks of options: each error names the key, the rule and the value."""

from __future__ import annotations

import math
import os
from pathlib import Path

from bhfl.files import user_path

LARGEST = 2**31
"""Of all counts and sizes; their products may still be more than a machine has."""


def check_int(key: str, value: int, minimum: int, maximum: int = LARGEST) -> int:
    """`value` if it is an integer from `minimum` to `maximum`; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{key} must be an integer of at least {minimum}, got {value!r}")
    if value > maximum:
        raise ValueError(f"{key} must be at most {maximum:,}, got {value!r}")
    return value


def check_optional_int(key: str, value: int | None, minimum: int) -> int | None:
    """As `check_int`, and None stays None."""
    return None if value is None else check_int(key, value, minimum)


def check_fraction(key: str, value: float) -> float:
    """`value` if it is in [0, 1); ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{key} must be at least 0 and below 1, got {value!r}")
    return float(value)


def check_positive(key: str, value: float) -> float:
    """`value` if it is a finite number above 0; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{key} must be a finite number above 0, got {value!r}")
    return float(value)


def check_path(key: str, value: str | os.PathLike[str] | None) -> Path | None:
    """The path that a user means by `value`, see `user_path`, and None stays None; ValueError where
    it is none.
    """
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{key} must be a path, got {value!r}")
    try:
        return user_path(value)
    except ValueError as error:
        raise ValueError(f"{key} must be a path: {error}") from error
