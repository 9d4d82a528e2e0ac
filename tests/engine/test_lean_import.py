"""``bhfl.engine.folder`` alone loads no torch; the room's own names are loaded when they are asked
for.
"""

import subprocess
import sys

import pytest

import bhfl.engine

SCRIPT = """
import sys
import bhfl.engine.folder
assert not {"torch", "lightning", "numpy"} & set(sys.modules)
"""


def test_import() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'bhfl\.engine' has no attribute 'Trainer'"):
        _ = bhfl.engine.Trainer
