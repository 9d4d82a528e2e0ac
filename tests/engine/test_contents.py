"""A checkpoint with a right digest and a wrong content is refused by name, whatever is wrong; else
the run goes on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bhfl.algorithms import FedAvg, FedCOMGATE
from bhfl.engine import checkpoint
from bhfl.engine.checkpoint import CheckpointError, round_path
from bhfl.engine.client.store import ClientStore
from bhfl.engine.contents import check_contents, lost_key, read_state
from bhfl.engine.resume import fitting
from bhfl.engine.types import ServerState
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit

GONE = object()
WRONG = [
    GONE,
    None,
    [],
    "text",
    -1,
    10**30,
    math.nan,
    math.inf,
    {},
    {"a": None},
    {1: 2},
    torch.zeros(2),
    True,
    [[-1]],
]
HARMLESS = {
    "server.metrics", "server.participants", "server.participants.0", "run.seconds",
    "run.bests..value", "run.first", "run.ledger", "run.ledger.int8", "run.ledger.float32",
    "config", "version", "server.extra.mean", "server.channels_last", "server.buffers.first",
    "run.stopped", "server.holders", "server.buffers.frozen",
}  # fmt: skip
"""Where some of these are what a run could have written, or what the algorithm itself replaces
before it is used.
"""


def go(folder: Path, rounds: int, ckpt_path: Any = None) -> Any:
    data = HandMade([points(6), points(6, seed=3)], held_out=points(4, seed=9))
    module = lambda: Module(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))  # noqa: E731
    algorithm = FedCOMGATE(4, allow_inexact=True)
    return fit(
        folder,
        algorithm,
        {8: 1, 32: 1},
        module,
        data,
        ckpt_path,
        max_rounds=rounds,
        monitor="train/loss",
        mode="min",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return go(tmp_path_factory.mktemp("run"), 2).run


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each key of nested mappings and the first item of each list."""
    if place:
        yield place
    inner = (
        value.items()
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*place, key))


def changed(state: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of `state` with `value` at `place`."""
    state = copy.deepcopy(state)
    holder = state
    for key in place[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return state


def take_up(state: Any, folder: Path, fresh: ServerState) -> None:
    """What a resumed run does with a checkpoint before it trains."""
    state = check_contents(state)
    fitting(state, fresh)
    ClientStore.listed(folder, state["clients"])


def test_wrong_contents_are_refused_by_name(run):
    good = checkpoint.load(round_path(run.checkpoints, 2))
    fresh = ServerState(**copy.deepcopy(good["server"]))
    take_up(copy.deepcopy(good), run.folder, fresh)
    accepted, tried = set(), 0
    for place in places({**good, "config": {}}):
        for value in WRONG:
            tried += 1
            try:
                take_up(changed(good, place, value), run.folder, copy.deepcopy(fresh))
            except CheckpointError:
                continue
            accepted.add(".".join(map(str, place)))
    assert tried > 500
    assert {place for place in accepted if not place.startswith("server.extra.mean.")} == HARMLESS


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("server", "round"), -1, "server.round must be a whole number from 0, got -1"),
        (
            ("server", "params", "net.0.weight"),
            "text",
            r"params\['net.0.weight'\] must be a tensor, got 'text'",
        ),
        (("run", "history"), GONE, "run must hold history, .*: 'history' is missing or unknown"),
        (("server", "round"), 1, "its history must have one row for each of 1 rounds, got 2 rows"),
        (("run", "bests", "", "value"), math.nan, r"run.bests\[''\].value must be finite, got nan"),
        (("run", "bests", "", "round"), 3, r"run.bests\[''\].round must be a round with a value"),
        (("run", "bests", ""), GONE, "run.bests must hold the best round of all clients"),
        (("config",), {"trainer": torch.zeros(2)}, "trainer.. must be options without tensors"),
        (
            ("clients", "sha256"),
            torch.zeros(2, 31).byte(),
            "clients must be a table of ids, rounds and sha256",
        ),
        (("server", "accepted"), [], "server.accepted must be a round for each client, got list"),
        (("server", "accepted", 0), 3, "server.accepted must hold a round of at most 2 for each"),
        (("server", "accepted", 0), 1, "server.accepted must hold .* none before what the client"),
        (("clients", "rounds"), torch.zeros(2).long(), "clients must hold each client once, with"),
    ],
)
def test_the_file_and_the_entry_are_named(run, tmp_path, place, value, message):
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, changed(checkpoint.load(round_path(run.checkpoints, 2)), place, value))
    with pytest.raises(CheckpointError, match=rf"a\.ckpt: not a checkpoint of a run: .*{message}"):
        read_state(path)


def test_a_run_falls_back_over_a_checkpoint_of_a_wrong_content(tmp_path):
    run = go(tmp_path, 2).run
    path = round_path(run.checkpoints, 2)
    checkpoint.save(path, changed(checkpoint.load(path), ("run",), None))
    with pytest.warns(
        UserWarning, match=r"round=00002\.ckpt: not a checkpoint of a run: run must be"
    ):
        trainer = go(tmp_path, 3, "last")
    assert trainer.server.round == 3


@pytest.mark.parametrize("options", [{}, [], None, 5, {"a": torch.zeros(2)}])
def test_other_options_in_a_checkpoint_are_told(tmp_path, options):
    run = go(tmp_path, 1).run
    path = round_path(run.checkpoints, 1)
    checkpoint.save(path, changed(checkpoint.load(path), ("config",), options))
    with pytest.raises(CheckpointError):
        go(tmp_path, 2, path)


def test_what_an_algorithm_keeps_keeps_its_keys_and_kinds():
    first = {"count": 0, "memory": [], "model": {}, "optimiser": None, "name": "a"}
    assert (
        lost_key({**first, "count": torch.tensor(3), "optimiser": {0: 1}, "more": 1}, first) == ""
    )
    assert "'memory' is gone" in lost_key({"count": 1}, first)
    assert (
        "extra['model'] must stay of the kind that init_server made, dict, and is list"
        in lost_key({**first, "model": []}, first)
    )


def test_an_algorithm_that_drops_what_it_began_with_is_told_at_once(tmp_path):
    class Forgetful(FedAvg):
        def init_server(self, params, clients):
            return {"count": 0}

        def server_update(self, server, aggregate, rng):
            return replace(super().server_update(server, aggregate, rng), extra={})

    with pytest.raises(
        ValueError, match=r"Forgetful.server_update: ServerState.extra must keep .*'count' is gone"
    ):
        fit(
            tmp_path,
            Forgetful(),
            {32: 1},
            Module,
            HandMade([points(6)]),
            monitor="train/loss",
            mode="min",
        )
