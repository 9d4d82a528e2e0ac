"""What holds for every test."""

import os
from collections.abc import Iterator

import pytest

from tests.interrupts import hear_interrupts

hear_interrupts()


@pytest.fixture(autouse=True)
def _seed_of_lightning_is_put_back() -> Iterator[None]:
    """`lightning.seed_everything` leaves a variable behind, which later trainers take their seed
    from.
    """
    before = os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
    if before is not None:
        os.environ["PL_GLOBAL_SEED"] = before
