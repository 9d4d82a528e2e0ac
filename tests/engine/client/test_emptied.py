"""A client whose algorithm keeps nothing more has nothing, and not what it kept before."""

from __future__ import annotations

from pathlib import Path

import torch

from bhfl.algorithms import FedAvg
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit


class Once(FedAvg):
    """Keeps something of its first round until the next."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []

    def uplink(self, run):
        self.found.append(sorted(run.state))
        run.state.clear()
        if run.round == 0:
            run.state["first"] = torch.ones(1)
        return super().uplink(run)


def test_a_state_that_was_emptied_does_not_come_back(tmp_path: Path) -> None:
    algorithm = Once()
    data = HandMade([points(4)], held_out=points(4, 9))
    fit(tmp_path, algorithm, clients={8: 1}, module=Module, data=data)
    assert algorithm.found == [[], ["first"], []]
