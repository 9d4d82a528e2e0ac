"""`begin_round` sees the cohort before anything is sent, and what it makes goes with its round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bhfl.algorithms import FedLQ, ProWD
from bhfl.algorithms.fedlq import Sensitivity
from bhfl.algorithms.prowd import Dequantizer
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.checkpoint import digest
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fake, fit

SIZES = (6, 9, 12, 15)


def run(folder, algorithm: Algorithm, **options):
    data = HandMade([points(size, size) for size in SIZES], held_out=points(9, 99))
    settings = {"max_rounds": 2, **options}
    return fit(folder, algorithm, {32: len(SIZES)}, Module, data, **settings)


class Noting(Algorithm):
    """FedAvg that writes down what each hook is called with, in the order of the calls."""

    def __init__(self) -> None:
        self._notes: list[tuple[object, ...]] = []

    def prepare(self, module, clients):
        self._notes.append(("prepare", len(clients)))

    def setup(self, context):
        self._notes.append(("setup",))

    def init_server(self, params, clients):
        return {"kept": 0}

    def begin_round(self, server, cohort, context):
        ids = [client.id for client in cohort]
        steps = [context.planned_steps(client) for client in cohort]
        self._notes.append(("begin_round", server.round, ids, steps))
        extra = {**server.extra, "kept": server.round + 1, "plan": torch.tensor(ids)}
        return replace(server, extra=extra, metrics={"planned": 1.0})

    def downlink(self, server, client):
        self._notes.append(("downlink", client.id, server.extra["kept"]))
        assert client.id in server.extra["plan"]
        return server.params

    def server_update(self, server, aggregate, rng):
        extra = {"kept": server.extra["kept"]}
        return super().server_update(replace(server, extra=extra), aggregate, rng)


@pytest.mark.parametrize("steps", [None, 5])
def test_it_comes_once_a_round_after_the_draw_and_before_anything_is_sent(tmp_path, steps):
    trainer = run(tmp_path, Noting(), clients_per_round=3, local_epochs=2, local_steps=steps)
    notes = trainer.algorithm._notes
    assert [note[0] for note in notes[:3]] == ["prepare", "setup", "begin_round"]
    rounds = [note for note in notes if note[0] == "begin_round"]
    assert [round for _, round, _, _ in rounds] == [0, 1]
    for _, round, ids, planned in rounds:
        assert ids == [note[1] for note in notes if note[0] == "downlink" and note[2] == round + 1]
        assert planned == [steps or 2 * trainer.session.data.num_batches(id) for id in ids]
    assert trainer.server.extra == {"kept": 2}
    assert all(row["planned"] == 1 for row in trainer.run.history)


def test_what_it_made_is_dropped_with_a_round_that_is_skipped(tmp_path):
    class Alone(Noting):
        def uplink(self, run):
            return super().uplink(run) if run.round == 0 else None

    one = run(tmp_path / "a", Alone(), max_failed_rounds=2)
    first = run(tmp_path / "b", Noting(), max_rounds=1)
    assert (one.server.round, one.server.extra) == (2, {"kept": 1})
    assert digest(one.server.params) == digest(first.server.params)
    assert "planned" in one.run.history[0]
    assert "planned" not in one.run.history[1]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda server: None, "Mine.begin_round must return a ServerState, got NoneType"),
        (
            lambda server: replace(server, params={}),
            "Mine.begin_round must return every tensor of the model, 'net.0.weight' is missing",
        ),
        (
            lambda server: replace(
                server, params={n: t * torch.inf for n, t in server.params.items()}
            ),
            "Mine.begin_round: 'net.0.weight' must be finite",
        ),
        (lambda server: replace(server, extra={}), "Mine.begin_round: .* 'kept' is gone"),
        (lambda server: replace(server, extra={"kept": []}), "must stay of the kind .*, int, and"),
        (lambda server: replace(server, metrics={"x": "y"}), "Mine.begin_round .* got str as 'x'"),
    ],
)
def test_what_it_returns_is_held_to_the_state_before(tmp_path, made, message):
    class Mine(Algorithm):
        def init_server(self, params, clients):
            return {"kept": 0}

        def begin_round(self, server, cohort, context):
            return made(server)

    with pytest.raises(ValueError, match=message):
        run(tmp_path, Mine())


def test_what_is_the_engines_in_the_state_stays(tmp_path):
    class Mine(Algorithm):
        def begin_round(self, server, cohort, context):
            return replace(server, round=7, participants=[9], channels_last=True, buffers={})

    trainer = run(tmp_path / "a", Mine())
    assert digest(vars(trainer.server)) == digest(vars(run(tmp_path / "b", Algorithm()).server))


def silent(algorithm: type[Algorithm]) -> type[Algorithm]:
    """The algorithm, whose clients send nothing in the second round."""

    class Silent(algorithm):
        def uplink(self, run):
            return super().uplink(run) if run.round == 0 else None

    return Silent


LEARNING = Dequantizer(warmup_rounds=1, period=1, first_steps=3, steps=3, distill_weight=0.0)
DUE = {
    "prowd": (
        ProWD,
        {"dequantizer": LEARNING},
    ),
    "fedlq": (FedLQ, {"sensitivity": Sensitivity(refresh=1)}),
    "planned": (FedLQ, {"sensitivity": Sensitivity(refresh=1), "plan": "server"}),
}


@pytest.mark.parametrize("case", DUE)
def test_a_skipped_round_leaves_only_its_number(tmp_path, case):
    """ProWD fine-tunes in it and FedLQ probes, in vain."""
    algorithm, options = DUE[case]
    settings = {"clients": {"ternary": 1, 32: 2}, "data": fake(64, holdout=16)}
    with pytest.warns(UserWarning, match="skipped: nothing was sent"):
        skipped = fit(tmp_path / "a", silent(algorithm)(**options), max_rounds=2, **settings)
    before = fit(tmp_path / "b", algorithm(**options), max_rounds=1, **settings)
    after = fit(tmp_path / "c", algorithm(**options), max_rounds=2, **settings)
    assert kept(skipped) == kept(before) != kept(after)
    assert (skipped.server.round, skipped.server.metrics) == (2, {})
    tags = {tag for tag in skipped.run.history[1] if tag.startswith(("fedlq", "dequantizer"))}
    assert not tags


def kept(trainer) -> str:
    return digest({**vars(trainer.server), "round": 0, "metrics": {}})


@pytest.mark.parametrize("case", DUE)
def test_plans_do_not_last(tmp_path, case):
    algorithm, options = DUE[case]
    settings = {"clients": {"ternary": 1, 32: 2}, "data": fake(64, holdout=16)}
    trainer = fit(tmp_path, algorithm(**options), max_rounds=2, **settings)
    first = algorithm(**options)
    first.prepare(trainer.session.module, trainer.clients)
    first.setup(trainer.session.context)
    made = first.init_server(trainer.server.params, trainer.clients)
    assert trainer.server.extra.keys() == made.keys()
