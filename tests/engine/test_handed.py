"""What hooks hand over is checked where they return it, and errors name the class, the hook and the
tensor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.algorithm import Algorithm
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import fit, same

WEIGHT = "net.0.weight"


def drop(tensors: dict[str, Any]) -> None:
    del tensors[WEIGHT]


def rename(tensors: dict[str, Any]) -> None:
    tensors["net.0.wieght"] = tensors.pop(WEIGHT)


def transpose(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].t()


def spoil(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT] * torch.nan


def explode(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT] + torch.inf


def double(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].double()


def whole_numbers(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].int()


def sparse(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].to_sparse()


def complex_(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].to(torch.complex64)


def array(tensors: dict[str, Any]) -> None:
    tensors[WEIGHT] = tensors[WEIGHT].numpy()


def add(tensors: dict[str, Any]) -> None:
    tensors["new"] = torch.zeros(1)


RULES = {
    drop: r"every tensor of the model, 'net\.0\.weight' is missing",
    rename: r"'net\.0\.weight' is missing; got 'net\.0\.wieght', which the model does not have",
    transpose: r"'net\.0\.weight' must have shape \(7, 6\), got \(6, 7\)",
    spoil: r"'net\.0\.weight' must be finite",
    explode: r"'net\.0\.weight' must be finite",
    double: r"'net\.0\.weight' must be torch\.float32, got torch\.float64",
    whole_numbers: r"'net\.0\.weight' must be torch\.float32, got torch\.int32",
    sparse: r"'net\.0\.weight' must be a dense tensor",
    complex_: (
        r"'net\.0\.weight' must be a dense tensor of a kind that can be sent, "
        r"got torch\.complex64"
    ),
    array: r"'net\.0\.weight' must be a tensor, got ndarray",
    add: r"got 'new', which it does not have",
}


def run(folder, algorithm: Algorithm | None, clients: int = 2, **options: Any):
    data = HandMade([points(6 + i, i) for i in range(clients)], held_out=points(9, 99))
    return fit(folder, algorithm, {32: clients}, Module, data, max_rounds=2, **options)


@pytest.mark.parametrize("fault", RULES, ids=lambda fault: fault.__name__)
def test_a_server_update_is_held_to_the_model(tmp_path, fault):
    class Mine(Algorithm):
        def server_update(self, server, aggregate, rng):
            params = dict(aggregate)
            fault(params)
            return replace(server, params=params)

    with pytest.raises(ValueError, match=rf"Mine\.server_update.*{RULES[fault]}"):
        run(tmp_path, Mine())


@pytest.mark.parametrize("fault", [transpose, spoil, double, whole_numbers, sparse, array, add])
def test_so_are_the_models_of_groups_and_what_is_sent_down(tmp_path, fault):
    class Measured(Algorithm):
        def group_params(self, server, group):
            params = dict(server.params)
            fault(params)
            return params

    class Sent(Algorithm):
        def downlink(self, server, client):
            return Measured.group_params(self, server, client.group)

    with pytest.raises(ValueError, match=rf"Measured\.group_params.*{RULES[fault]}"):
        run(tmp_path / "a", Measured())
    with pytest.raises(ValueError, match=rf"Sent\.downlink.*{RULES[fault]}"):
        run(tmp_path / "b", Sent())


@pytest.mark.parametrize("fault", [transpose, spoil, double, array, add])
def test_so_is_what_clients_make_of_a_downlink(tmp_path, fault):
    class Mine(Algorithm):
        def receive(self, received, state):
            given = dict(received)
            fault(given)
            return given

    with pytest.raises(ValueError, match=rf"Mine\.receive.*{RULES[fault]}"):
        run(tmp_path, Mine())


def test_a_group_model_lacks_only_what_is_the_clients_own(tmp_path):
    class Mine(Algorithm):
        def group_params(self, server, group):
            params = dict(server.params)
            drop(params)
            return params

    with pytest.raises(
        ValueError, match=r"Mine\.group_params must return 'net\.0\.weight', which no client has"
    ):
        run(tmp_path, Mine())


class Mean(WeightedMean):
    """A mean that something is done to."""

    def __init__(self, like, fault) -> None:
        super().__init__(like)
        self.fault = fault

    def reduce(self, fabric):
        mean = super().reduce(fabric)
        assert mean is not None
        self.fault(mean)
        return mean


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            drop,
            r"Mine\.apply_mean\(mean\) must hold every tensor that clients send, "
            r"'net\.0\.weight' is missing",
        ),
        (rename, r"Mine\.apply_mean\(mean\).* got 'net\.0\.wieght', which it does not have"),
        (transpose, r"Mean\.reduce: 'net\.0\.weight' must have shape \(7, 6\), got \(6, 7\)"),
        (spoil, r"Mean\.reduce: \['net\.0\.weight'\] must be finite"),
        (
            double,
            r"Mine\.apply_mean\(mean\): 'net\.0\.weight' must be "
            r"torch\.float32, got torch\.float64",
        ),
    ],
)
def test_what_an_aggregator_comes_to_is_held_to_the_model(tmp_path, fault, message):
    class Mine(Algorithm):
        def aggregator(self, server, clients):
            return Mean(server.params, fault)

    with pytest.raises(ValueError, match=message):
        run(tmp_path, Mine())


@pytest.mark.parametrize("fault", [drop, rename, transpose, array])
def test_a_reconstruction_that_fits_no_model_is_told_at_once(tmp_path, fault):
    class Mine(Algorithm):
        def reconstruct(self, update, client, server):
            tensors = dict(super().reconstruct(update, client, server))
            fault(tensors)
            return tensors

    with pytest.raises(
        ValueError, match=r"Mine\.reconstruct: WeightedMean\.add: 'net\.0\.weight' must "
    ):
        run(tmp_path, Mine())


def test_a_reconstruction_of_one_client_that_is_no_number_rejects_that_client_alone(
    tmp_path, monkeypatch
):
    class Mine(Algorithm):
        def reconstruct(self, update, client, server):
            tensors = dict(super().reconstruct(update, client, server))
            if client.id == 1:
                spoil(tensors)
            return tensors

    trainer = run(tmp_path / "a", Mine(), clients=3)
    (problem,) = trainer.run.history[0]["problems"]
    assert problem.startswith(
        "client 1 rejected: Mine.reconstruct: WeightedMean.add raised ValueError: it has a"
    )
    monkeypatch.setattr(
        "bhfl.engine.sampling.sample_cohort", lambda clients, *_: [clients[0], clients[2]]
    )
    assert same(trainer.server.params, run(tmp_path / "b", None, clients=3).server.params)


def returning(hook: str, value: Any) -> Algorithm:
    """An algorithm of which one hook returns a value."""
    made = type("Mine", (Algorithm,), {hook: ARGUMENTS[hook](value)})
    algorithm: Algorithm = made()
    return algorithm


ARGUMENTS: dict[str, Any] = {
    "init_server": lambda value: lambda self, params, clients: value,
    "downlink": lambda value: lambda self, server, client: value,
    "expected": lambda value: lambda self, server: value,
    "closing": lambda value: lambda self, server: value,
    "group_params": lambda value: lambda self, server, group: value,
    "init_client": lambda value: lambda self, client, received: value,
    "receive": lambda value: lambda self, received, state: value,
    "uplink": lambda value: lambda self, run: value,
}


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_list_is_no_dict_of_tensors(tmp_path, hook):
    with pytest.raises(ValueError, match=rf"Mine\.{hook} must .*dict.*, got list"):
        run(tmp_path, returning(hook, [1, 2]))


@pytest.mark.parametrize(
    "value", [{"x": torch.eye(2).to_sparse()}, {"x": torch.ones(1, device="meta")}, {"x": "text"}]
)
@pytest.mark.parametrize("hook", ["downlink", "expected", "closing"])
def test_what_cannot_be_sent_is_no_message(tmp_path, hook, value):
    with pytest.raises(ValueError, match=rf"Mine\.{hook}: 'x' must be a "):
        run(tmp_path, returning(hook, value))


def test_what_a_client_keeps_is_held_to_what_can_be_kept(tmp_path):
    class Leaving(Algorithm):
        def uplink(self, run):
            run.state["note"] = object()
            return super().uplink(run)

    class Closed(Algorithm):
        def closing(self, server):
            return {"x": torch.zeros(1)}

        def client_close(self, client, state, closing):
            return None

    with pytest.raises(
        ValueError,
        match=r"run\.state after Leaving\.uplink\['note'\] must be a tensor.* got object",
    ):
        run(tmp_path / "a", Leaving())
    with pytest.raises(
        ValueError, match=r"Closed\.client_close must be a dict of tensors, got NoneType"
    ):
        run(tmp_path / "b", Closed())


def test_numbers_to_log_are_numbers(tmp_path):
    class Mine(Algorithm):
        def server_update(self, server, aggregate, rng):
            return self.apply_mean(replace(server, metrics={"mine/x": torch.ones(1)}), aggregate)

    class Client(Algorithm):
        def uplink(self, run):
            run.metrics["mine/x"] = "much"
            return super().uplink(run)

    with pytest.raises(
        ValueError, match=r"Mine\.server_update .*numbers by tag, got Tensor as 'mine/x'"
    ):
        run(tmp_path / "a", Mine())
    with pytest.raises(ValueError, match=r"Client\.uplink .*numbers by tag, got str as 'mine/x'"):
        run(tmp_path / "b", Client())
