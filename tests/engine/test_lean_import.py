"""``bhfl.engine.folder`` alone loads no torch, and what a device needs neither Lightning nor
torchvision; the room's own names are loaded when they are asked for.
"""

import subprocess
import sys

import pytest

import bhfl.algorithms
import bhfl.engine

SCRIPT = """
import sys
import bhfl.engine.folder
assert not {"torch", "lightning", "numpy"} & set(sys.modules)
"""

ON_A_DEVICE = """
import sys
import bhfl.engine.algorithm, bhfl.engine.buffers, bhfl.engine.random, bhfl.engine.types
import bhfl.engine.client.store
import bhfl.comm, bhfl.quant
from bhfl.algorithms import FedAvg
heavy = {"lightning", "torchmetrics", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("script", [SCRIPT, ON_A_DEVICE], ids=["folder", "device"])
def test_import(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_all_algorithms_are_there_when_they_are_asked_for() -> None:
    found = [getattr(bhfl.algorithms, name) for name in bhfl.algorithms.__all__]
    assert [cls.__name__ for cls in found] == bhfl.algorithms.__all__
    with pytest.raises(AttributeError, match=r"module 'bhfl\.algorithms' has no attribute 'Fed'"):
        _ = bhfl.algorithms.Fed


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"module 'bhfl\.engine' has no attribute 'Trainer'"):
        _ = bhfl.engine.Trainer
