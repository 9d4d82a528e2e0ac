"""One thread: on tensors this small, waiting for a second one takes longer than the work. And
warnings told anew.
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
    """What one test was warned of, the next is warned of again."""
    base._REPORTED.clear()
