"""Randomness by keys: the same draws whatever ran before, and on whichever process."""

import random
from dataclasses import dataclass

import numpy as np
import torch

PURPOSES = (
    "sample", "shuffle", "augment", "dropout", "quant_up", "quant_down", "quant_train", "bandwidth",
    "compute", "partition", "server", "straggler", "availability",
)  # fmt: skip
"""Names of the streams. Appending one leaves the draws of all others as they are."""


@dataclass
class RandomKeys:
    """The random streams of one (seed, round, client): a generator for each purpose, none shared,
    none global.

    A method that draws more from one stream never shifts another, so two methods see the same data
    order.
    """

    seed: int
    round: int = 0
    client: int = 0

    def _sequence(self, purpose: str, extra: tuple[int, ...]) -> np.random.SeedSequence:
        key = (PURPOSES.index(purpose), self.round, self.client, *extra)
        return np.random.SeedSequence(self.seed, spawn_key=key)

    def numpy(self, purpose: str, *extra: int) -> np.random.Generator:
        """A NumPy generator for `purpose` (one of `PURPOSES`); `extra` tells several of one purpose
        apart.
        """
        return np.random.default_rng(self._sequence(purpose, extra))

    def torch(
        self, purpose: str, *extra: int, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        """A torch generator on `device` for `purpose`; `extra` as in `numpy`."""
        return torch.Generator(device).manual_seed(self.integer(purpose, *extra))

    def integer(self, purpose: str, *extra: int) -> int:
        """A 63-bit seed for `purpose`."""
        return int(self._sequence(purpose, extra).generate_state(1, np.uint64)[0] >> 1)


def seed_globals(seed: int, device: torch.device) -> None:
    """Seed the global generators: dropout and much user code draw from them. The trainer puts them
    back at its end.
    """
    random.seed(seed)
    # NumPy's global generator takes 32 bits at most
    np.random.seed(seed % 2**32)
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        # it seeds those of all devices, and takes a hundred times as long
        torch.manual_seed(seed)
