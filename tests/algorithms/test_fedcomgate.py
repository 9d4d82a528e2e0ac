"""Tracking with the client's own quantised difference: exact where FedCOM stalls."""

import pytest
import torch

from bhfl.algorithms import FedCOM, FedCOMGATE
from bhfl.engine.sampling import sample_cohort
from tests.algorithms.quadratics import Data, Module, Paced
from tests.federation import Client, fake, fit, same

ROUNDS = 60
SLOW = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}
FLOAT = [{"bits": 32, "count": 1}]
QUIET = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}


def error(trainer, data):
    return float(
        (trainer.server.params["weight"].double() - data.optimum()).norm() / data.optimum().norm()
    )


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    data = Data(4)
    found = {}
    for algorithm in (FedCOM(4), FedCOMGATE(4)):
        folder = tmp_path_factory.mktemp("quadratics")
        run = fit(folder, algorithm, {32: 4}, Module, data, max_rounds=ROUNDS, **QUIET)
        found[type(algorithm).__name__] = error(run, data)
    return found


@pytest.mark.slow
def test_gate_converges_where_fedcom_stalls(errors):
    assert errors["FedCOM"] > 1e-2
    assert errors["FedCOMGATE"] < 1e-4 * errors["FedCOM"]


@pytest.mark.slow
def test_what_gate_leaves_out_lasts_in_its_tracking(tmp_path):
    """A quarter of the entries leads there too, with no other feedback."""
    data = Data(4)
    options = {"max_rounds": ROUNDS, **QUIET}
    run = fit(tmp_path, FedCOMGATE(8, top_k=0.25), {32: 4}, Module, data, **options)
    assert error(run, data) < 1e-4
    assert run.run.history[1]["uplink_bytes"] < 4 * 120


@pytest.mark.parametrize(("clients_per_round", "few"), [(None, {}), (5, {}), (5, {"top_k": 0.3})])
def test_deltas_sum_to_zero(tmp_path, clients_per_round, few):
    data = Data(10)
    options = {"clients_per_round": clients_per_round, "max_rounds": 12, **QUIET}
    run = fit(tmp_path, FedCOMGATE(4, **few), {32: 10}, Module, data, **options)
    kept = [run.session.store.load(i, 99) for i in range(10)]
    deltas = torch.stack([state["algorithm"]["tracked/weight"].double() for state in kept if state])
    assert len(deltas) >= 5
    assert deltas.abs().max() > 0.05
    assert deltas.sum(0).abs().max() < 1e-5 * deltas.abs().max() * len(deltas)


def test_lossless_gate_is_scaffold(tmp_path):
    """SCAFFOLD option II, written down independently: c_i = mean gradient of the round, c = mean of
    the c_i.
    """
    data = Data(4)
    steps = 10
    run = fit(tmp_path, FedCOMGATE(32), {32: 4}, Paced, data, max_rounds=20, **QUIET)
    # of a group of parameters with a rate of its own
    lr, found = 0.01, run.server.params["slow"]
    w = torch.zeros_like(data.t[0], dtype=torch.float64)
    c_i, c = [torch.zeros_like(w) for _ in range(4)], torch.zeros_like(w)
    for _ in range(20):
        ends, gradients = [], []
        for i in range(4):
            y, total = w.clone(), torch.zeros_like(w)
            for _ in range(steps):
                g = data.h[i].double() * (y - data.t[i].double())
                total += g
                y = y - lr * (g - c_i[i] + c)
            ends.append(y)
            gradients.append(total / steps)
        w = torch.stack(ends).mean(0)
        c_i = gradients
        c = torch.stack(gradients).mean(0)
    assert (found.double() - w).abs().max() < 1e-6


def test_a_round_without_a_learning_rate_tracks_nothing(tmp_path):
    run = fit(
        tmp_path, FedCOMGATE(4), {32: 4}, lambda: Module(lr=0.0), Data(4), max_rounds=2, **QUIET
    )
    state = run.session.store.load(0, 99)["algorithm"]
    assert not state["tracked/weight"].any()
    assert not run.server.params["weight"].any()


def test_a_client_rebuilds_the_servers_model_to_the_bit(tmp_path):
    run = fit(
        tmp_path,
        FedCOMGATE(4, server_lr=0.7),
        {8: 2, 32: 2},
        lambda: Client(momentum=0.0),
        local_steps=2,
    )
    check_rebuilt(run, 4)


def check_rebuilt(run, clients):
    for client in range(clients):
        state = run.session.store.load(client, 3)["common"]
        rebuilt = {
            name.removeprefix("start/"): t for name, t in state.items() if name.startswith("start/")
        }
        assert same(rebuilt, run.server.params)


def test_a_client_that_was_sent_codes_begins_with_the_servers_model_once_its_bits_have_grown(
    tmp_path,
):
    fleet = [{"bits": 8, "count": 2, "schedule": {1: 32}, "name": "growing"}]
    options = {"local_steps": 2, "downlink": "client"}
    run = fit(tmp_path, FedCOMGATE(4), fleet, lambda: Client(momentum=0.0), **options)
    check_rebuilt(run, 2)


def test_full_participation_costs_one_float32_model_down_a_round(tmp_path):
    run = fit(
        tmp_path, FedCOMGATE(4), {32: 3}, lambda: Client(momentum=0.0), local_steps=2, max_rounds=4
    )
    size = 4 * sum(tensor.numel() for tensor in run.server.params.values())
    down = [row["downlink_bytes"] for row in run.run.history]
    headers = down[1] - 3 * size
    assert 0 < headers < 3 * 400
    assert down[1:] == [down[1]] * 3
    assert down[0] > down[1] + 3 * size - headers


def test_bytes_of_partial_participation_are_the_formula(tmp_path):
    """Who comes new is sent the model, and all of the round its mean difference: biases are tracked
    as weights are.
    """
    options = {"clients_per_round": 2, "local_steps": 2, "max_rounds": 5}
    run = fit(tmp_path, FedCOMGATE(4), {32: 4}, lambda: Client(momentum=0.0), **options)
    weights = [tensor.numel() for tensor in run.server.params.values() if tensor.ndim >= 2]
    rest = sum(tensor.numel() for tensor in run.server.params.values() if tensor.ndim < 2)
    up = sum((4 * d + 7) // 8 + 4 for d in weights) + 4 * rest
    model = 4 * (sum(weights) + rest)
    before = set()
    wanted = []
    for round in range(5):
        cohort = {c.id for c in sample_cohort(run.clients, 2, 0, round, "stratified")}
        wanted.append(2 * up + 2 * model + len(cohort - before) * model)
        before = cohort
    assert len(set(wanted)) > 1
    rows = run.run.history
    assert [
        row["uplink_bytes"] + row["downlink_bytes"] - row["header_bytes"] for row in rows
    ] == wanted


@pytest.mark.parametrize(
    ("module", "data", "options", "message"),
    [
        (
            Client,
            None,
            {"local_steps": 2},
            "FedCOMGATE needs torch.optim.SGD without momentum: .* of groups; set allow_inexact",
        ),
        (
            lambda: Client(momentum=0.0),
            fake(66),
            {},
            "FedCOMGATE needs equal numbers of local steps, got",
        ),
        (
            lambda: Client(momentum=0.0),
            None,
            {"local_steps": 2, "clients": [{"bits": 8, "count": 1, "optimizer": SLOW}, *FLOAT]},
            r"FedCOMGATE needs the same learning rates .*, got \[\(0\.01,\), \(0\.05,\)\]; set all",
        ),
    ],
)
def test_what_it_cannot_run_with(tmp_path, module, data, options, message):
    options = {"clients": {32: 7} if data else None, **options}
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, FedCOMGATE(), module=module, data=data, **options)
    assert not list(tmp_path.iterdir())


class Falling(Client):
    """Its rate falls with each epoch, or each step."""

    def __init__(self, interval):
        super().__init__(momentum=0.0)
        self.interval = interval

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def test_rates_that_fall_by_epochs_need_equal_batches(tmp_path):
    options = {"data": fake(66), "local_steps": 2, "max_rounds": 1}
    fit(tmp_path, FedCOMGATE(), {32: 7}, lambda: Falling("step"), **options)
    fit(tmp_path, FedCOMGATE(), {32: 7}, lambda: Falling("epoch"), **{**options, "local_steps": 1})
    with pytest.raises(ValueError, match="between clients of 1 batches and of more: set lr_int"):
        fit(tmp_path, FedCOMGATE(), {32: 7}, lambda: Falling("epoch"), **options)


class Plateau(Client):
    """Its rate falls where its loss does not."""

    def __init__(self):
        super().__init__(momentum=0.0)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        entry = {"scheduler": schedule, "monitor": "train/loss"}
        return {"optimizer": optimizer, "lr_scheduler": entry}


def test_rates_that_follow_a_clients_own_loss_are_refused(tmp_path):
    options = {"local_steps": 2, "max_rounds": 1}
    fit(tmp_path, FedCOMGATE(), {32: 2}, Plateau, **options)
    with pytest.raises(ValueError, match=r"follows what each client logs .*; set lr_schedule"):
        fit(tmp_path, FedCOMGATE(), {32: 2}, Plateau, lr_schedule="restart", **options)


def test_inexact_on_demand(tmp_path):
    with pytest.raises(
        ValueError, match=r"FedCOMGATE\.allow_inexact must be true or false, got 'no"
    ):
        FedCOMGATE(allow_inexact="no")
    assert fit(tmp_path, FedCOMGATE(allow_inexact=True)).server.round == 3
