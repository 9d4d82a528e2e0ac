"""One thread: on tensors this small, waiting for a second one takes longer than the work.

What is warned of once in a process is warned of once in each test.
"""

from collections.abc import Iterator

import pytest
import torch

from bhfl.quant.backends import base


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def reported_anew() -> None:
    base._REPORTED.clear()
