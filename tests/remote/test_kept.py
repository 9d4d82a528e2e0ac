"""What a client on its own machine goes on with, by the version that its server took last."""

from __future__ import annotations

from pathlib import Path

import torch

from bhfl.remote.kept import KeptState
from tests.engine.hand_made import keep


def kept(folder: Path) -> KeptState:
    """The state of client 3 after round 2."""
    store = KeptState(folder, 3)
    keep(store, 3, 2, {"algorithm": {"left": torch.tensor([2.0])}})
    store.keep(2)
    return store


def test_an_older_state_is_not_gone_on_with_and_there_for_a_server_that_goes_back(tmp_path: Path):
    store = kept(tmp_path)
    closed: list[int] = []
    store.closed = lambda state, closing, round: closed.append(round) or state
    store.stand_at(5, [2, 5], b"closing")
    assert not store.has(5)
    assert store.load(3, 5) is None
    assert closed == []
    store.stand_at(2, [2, 5], None)
    assert store.load(3, 2)["algorithm"]["left"] == 2
