"""Warnings told anew."""

import pytest

from bhfl.quant.backends import base


@pytest.fixture(autouse=True)
def reported_anew() -> None:
    """What one test was warned of, the next is warned of again."""
    base._REPORTED.clear()
