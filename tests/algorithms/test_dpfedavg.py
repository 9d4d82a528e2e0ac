"""DPFedAvg against NumPy without noise, its noise by its variance, its epsilon by dp-accounting."""

from __future__ import annotations

import sys

import dp_accounting
import numpy as np
import pytest
import torch

from bhfl.algorithms import DPFedAvg, FedAvg
from bhfl.algorithms.dpfedavg import _one_round
from bhfl.cli.exits import BAD_CONFIG, exit_code
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine.checkpoint import digest
from bhfl.engine.random import RandomKeys
from bhfl.engine.sampling import poisson_cohort
from bhfl.engine.types import ServerState
from tests.algorithms.quadratics import Data, Module
from tests.federation import Client, Net, fit, same

LR = 0.05
QUIET = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}
POISSON = {"sampling": "poisson", "weights": "uniform"}
pytestmark = pytest.mark.filterwarnings("ignore:the guarantee is of the models alone")
ENDS = ("", "_float32", "_avg", "_min")
NOBODY = 1e-9
"""A rate at which no round has a client."""


class Unlucky(DPFedAvg):
    """Client 1 fails in every round."""

    def client_loss(self, run, batch, batch_idx):
        if run.client.id == 1:
            raise RuntimeError("bad luck")
        return super().client_loss(run, batch, batch_idx)


def trained(folder, algorithm, data, clients=4, module=Module, **options):
    settings = {**QUIET, **POISSON, **options}
    return fit(folder, algorithm, {32: clients}, module, data, **settings)


def ends(data, w):
    """Where each client comes to from `w`."""
    h, t = data.h.double().numpy(), data.t.double().numpy()
    found = np.stack(len(t) * [w])
    for _ in range(data.steps):
        found = found - LR * h * (found - t)
    return found


def of(run):
    return run.server.params["weight"].double().numpy()


@pytest.mark.parametrize("quantile", [None, 0.4])
def test_without_noise_it_is_what_numpy_makes_of_the_same_cohorts(tmp_path, quantile):
    data = Data(8)
    algorithm = DPFedAvg(2.2, 0.0, quantile=quantile)
    run = trained(tmp_path, algorithm, data, 8, clients_per_round=3, max_rounds=20)
    w, bound = np.zeros_like(data.t[0].numpy(), np.float64), 2.2
    sizes, clips = set(), set()
    for round in range(20):
        cohort = [client.id for client in poisson_cohort(run.clients, 3 / 8, 0, round)]
        moves = ends(data, w)[cohort] - w
        lengths = np.sqrt((moves**2).sum((1, 2)))
        w = w + (moves * np.minimum(1, bound / lengths)[:, None, None]).sum(0) / 3
        clips |= set(lengths > bound)
        share = ((lengths <= bound) - 0.5).sum() / 3 + 0.5
        bound *= np.exp(-0.2 * (share - quantile)) if quantile else 1
        sizes.add(len(cohort))
    assert len(sizes) > 3
    assert clips == {False, True}
    assert np.abs(of(run) - w).max() <= 1e-5 * np.abs(w).max()
    assert run.run.history[-1]["clipping/bound"] == pytest.approx(bound)


def test_where_nothing_is_clipped_and_all_take_part_it_is_fedavg_to_the_bit(tmp_path):
    fleet = {"ternary": 2, 32: 2}
    options = {"weights": "uniform", "max_rounds": 2}
    plain = fit(tmp_path, FedAvg(), fleet, **options)
    for bound in (None, 1e9):
        private = fit(tmp_path, DPFedAvg(bound, 0.0), fleet, **options)
        assert same(private.server.params, plain.server.params)
    assert "privacy/epsilon" not in private.run.history[-1]


def test_moves_are_clipped_after_they_were_dequantised(tmp_path):
    fleet = {"ternary": 2, 32: 2}
    algorithm = DPFedAvg(0.1, 0.0)
    torch.manual_seed(0)
    first = Client().state_dict()
    run = fit(tmp_path, algorithm, fleet, weights="uniform", max_rounds=1)
    moves = [run.server.params[name] - value for name, value in first.items()]
    length = torch.cat([move.reshape(-1) for move in moves]).norm()
    # a ternary grid alone is farther away
    assert 0.02 < length <= 0.1 + 1e-5


def test_who_fails_has_not_moved_and_the_divisor_stays(tmp_path):
    data = Data(4)
    run = trained(tmp_path, Unlucky(1e9, 0.0), data, max_rounds=2, min_clients=4)
    w = np.zeros_like(data.t[0].numpy(), np.float64)
    for _ in range(2):
        w = w + (ends(data, w) - w)[[0, 2, 3]].sum(0) / 4
    assert np.abs(of(run) - w).max() <= 1e-5 * np.abs(w).max()
    assert [row["clients/failed"] for row in run.run.history] == [1, 1]


def noised(algorithm, folder, size=200_000, clients=4, **options):
    """What the server adds in two rounds to a model of zeros that nobody has moved."""
    trained(folder, algorithm, Data(clients), clients, max_rounds=1, **options)
    algorithm._trained = {"x"}
    server = ServerState({"x": torch.zeros(size)}, extra=algorithm.init_server({}, []))
    nothing = (torch.zeros(size, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    found = []
    for round in range(2):
        following = algorithm.server_update(server, nothing, RandomKeys(0, round))
        found.append(following.params["x"].double().numpy())
    return found


def test_the_noise_has_its_variance_and_is_another_in_each_round(tmp_path):
    for rate, m in ((0.5, 2), (NOBODY, 4e-9)):
        first, second = noised(DPFedAvg(0.3, 1.5), tmp_path, clients_per_round=rate)
        for noise in (first, second):
            # five standard deviations of mean and variance
            assert abs(noise.mean()) < 5 * noise.std() / 200_000**0.5
            assert noise.var() == pytest.approx((1.5 * 0.3 / m) ** 2, rel=5 * (2 / 200_000) ** 0.5)
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / 200_000**0.5


@pytest.mark.parametrize("count_noise", [None, 0.6])
def test_moves_and_their_count_are_together_as_private_as_was_asked(tmp_path, count_noise):
    algorithm = DPFedAvg(1.0, 1.0, quantile=0.5, count_noise=count_noise)
    first, _ = noised(algorithm, tmp_path)
    of_count = count_noise or 1.0
    multiplier = first.std() * 4
    assert multiplier**-2 + (2 * of_count) ** -2 == pytest.approx(1, rel=0.02)
    # the bound moves by its noise alone where nobody comes
    run = trained(tmp_path, algorithm, Data(4), max_rounds=1, clients_per_round=NOBODY)
    assert run.server.extra["bound"] != pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("rate", "noise", "rounds", "delta"),
    [(0.5, 1.0, 3, 1e-5), (0.25, 0.7, 2, 1e-3), (None, 4.0, 2, 1e-6)],
)
def test_epsilon_is_that_of_dp_accounting(tmp_path, rate, noise, rounds, delta):
    algorithm = DPFedAvg(1.0, noise, None if delta == 1e-5 else delta)
    run = trained(tmp_path, algorithm, Data(4), max_rounds=rounds, clients_per_round=rate)
    event = dp_accounting.PoissonSampledDpEvent(rate or 1.0, dp_accounting.GaussianDpEvent(noise))
    accountant = dp_accounting.rdp.RdpAccountant()
    for row in run.run.history:
        accountant.compose(event)
        assert row["privacy/epsilon"] == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)
        assert row["privacy/delta"] == delta
    if rate is None:
        # without sampling it is known exactly, which is below the bound and not by far
        exact = dp_accounting.get_epsilon_gaussian(noise / rounds**0.5, delta)
        assert 0.8 * row["privacy/epsilon"] < exact <= row["privacy/epsilon"]


def test_delta_falls_with_the_size_of_the_fleet(tmp_path):
    algorithm = DPFedAvg()
    run = trained(tmp_path, algorithm, Data(4), max_rounds=1)
    context = run.session.context
    object.__setattr__(context, "clients", range(10**6))
    algorithm.setup(context)
    assert algorithm._delta == pytest.approx(10**-6.6)


def test_a_round_without_anybody_is_a_round_like_any_other(tmp_path):
    options = {"clients_per_round": 0.02, "max_rounds": 4, "max_failed_rounds": 1}
    run = trained(tmp_path, DPFedAvg(1e-9), Data(4), min_clients=1, **options)
    history = run.run.history
    assert [row["clients/ok"] for row in history] == [0] * 4
    assert run.server.params["weight"].abs().min() > 0
    spent = [row["privacy/epsilon"] for row in history]
    assert 0 < spent[0] < spent[1] < spent[2] < spent[3]


def test_small_rounds_count_whatever_min_clients_says(tmp_path):
    options = {"clients_per_round": 3, "min_clients": 3, "max_rounds": 4, "max_failed_rounds": 0}
    run = trained(tmp_path, DPFedAvg(), Data(6), 6, **options)
    assert min(row["clients/ok"] for row in run.run.history) < 3


class Mixed(Client):
    """A frozen layer, a constant, and a counter."""

    def __init__(self, batch_norm: bool = False) -> None:
        super().__init__(Net(batch_norm))
        self.register_buffer("scale", torch.full((3,), 0.3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.net[0].weight.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return super().training_step(batch, batch_idx)


def test_nothing_but_trained_parameters_leaves_a_client(tmp_path):
    torch.manual_seed(0)
    first = Mixed(True).state_dict()
    sent = []

    class Watched(DPFedAvg):
        def reconstruct(self, update, client, server):
            sent.append(set(update))
            return super().reconstruct(update, client, server)

    options = {"norm": "local", "max_rounds": 2, **POISSON}
    run = fit(tmp_path, Watched(), {8: 2, 32: 2}, lambda: Mixed(True), **options)
    params = run.server.params
    trained = {name for name, one in Mixed(True).named_parameters() if one.requires_grad}
    assert sent
    assert all(names == trained for names in sent)
    frozen = run.server.buffers["frozen"]
    assert frozen.keys() == {"net.0.weight"}
    assert torch.equal(frozen["net.0.weight"], first["net.0.weight"])
    assert torch.equal(params["scale"], first["scale"])
    assert not torch.equal(params["net.0.bias"], first["net.0.bias"])
    assert all(value == 0 for value in run.server.buffers["counters"].values())


def test_counters_stay_with_clients_where_there_are_no_norms(tmp_path):
    run = fit(tmp_path, DPFedAvg(), {32: 2}, Mixed, max_rounds=1, **POISSON)
    assert run.server.buffers["counters"] == {"seen": torch.zeros((), dtype=torch.int64)}


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    made = {"clients_per_round": 0.5, **POISSON}

    def run(folder, rounds, ckpt_path=None):
        algorithm = DPFedAvg(0.5, quantile=0.5)
        return fit(folder, algorithm, {8: 2, 32: 2}, max_rounds=rounds, ckpt_path=ckpt_path, **made)

    whole = run(tmp_path / "whole", 4)
    half = run(tmp_path / "half", 2)
    resumed = run(tmp_path / "half", 4, str(half.run.folder))
    assert digest(vars(resumed.server)) == digest(vars(whole.server))
    tags = ("privacy/epsilon", "clipping/bound")
    for tag in tags:
        assert [row[tag] for row in resumed.run.history] == [row[tag] for row in whole.run.history]


# ---- what is refused, and what is said -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": None}, "noise_multiplier must be 0 without DPFedAvg.bound, .*got 1.0"),
        ({"bound": 0}, "DPFedAvg.bound must be positive"),
        ({"noise_multiplier": -1}, "DPFedAvg.noise_multiplier must be"),
        ({"noise_multiplier": 1e-200}, "noise_multiplier must be 0 or at least 1e-06, got 1e-200"),
        ({"noise_multiplier": 1e200}, r"multiplier must be in \[0, 1e6\], got 1e\+200"),
        ({"count_noise": 1e200}, r"count_noise must be in \[0, 1e6\], got 1e\+200"),
        ({"delta": 1.0}, r"DPFedAvg.delta must be in \(0, 1\), got 1.0"),
        ({"quantile": 2}, "DPFedAvg.quantile must be"),
        ({"rate": 0}, "DPFedAvg.rate must be"),
        ({"count_noise": 0.5}, "DPFedAvg.count_noise must be more than half of .*0.5, got 0.5"),
        (
            {"bound": None, "noise_multiplier": 0, "quantile": 0.5},
            "DPFedAvg.quantile needs DPFedAvg.bound to begin with, got 0.5",
        ),
    ],
)
def test_options_without_a_guarantee_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DPFedAvg(**options)


@pytest.mark.parametrize(
    ("options", "module", "message"),
    [
        ({"sampling": "uniform"}, Client, "trainer.sampling must be poisson, got 'uniform'"),
        ({"weights": "samples"}, Client, "trainer.weights must be uniform, got 'samples'"),
        ({}, lambda: Client(Net(True)), "trainer.norm must be local, got 'group'"),
    ],
)
def test_settings_that_would_break_the_guarantee_are_refused(tmp_path, options, module, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, DPFedAvg(), {32: 2}, module, **{**POISSON, **options})
    assert not list(tmp_path.iterdir())


class Following(Module):
    """With a rate that halves where a metric of past rounds stands still."""

    def __init__(self, monitor, integers=False):
        super().__init__()
        self.monitor = monitor
        if integers:
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        entry = {"scheduler": plateau, "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": entry}


@pytest.mark.parametrize(
    ("monitor", "integers", "options"),
    [
        ("train_loss", False, {}),
        ("val/loss_local_float32", False, {}),
        ("val/loss", True, {}),
        ("val/loss_avg", False, {"finetune_epochs": 1}),
    ],
)
def test_rates_that_follow_what_clients_measure_are_refused(tmp_path, monitor, integers, options):
    def module():
        return Following(monitor, integers)

    told = rf"must not follow what clients measure, got '{monitor.replace('n_', 'n/')}'"
    with pytest.raises(ValueError, match=told):
        trained(tmp_path, DPFedAvg(), Data(2), 2, module, **options)
    assert not list(tmp_path.iterdir())


def test_clients_are_told_nothing_that_clients_measured(tmp_path):
    told = []

    class Listening(DPFedAvg):
        def client_loss(self, run, batch, batch_idx):
            told.append(set().union(*run.history))
            return super().client_loss(run, batch, batch_idx)

    options = {"max_rounds": 2, "evaluate_clients": "after", **POISSON}
    run = fit(tmp_path, Listening(), {32: 2}, **options)
    known = set(run.run.history[0])
    assert {"train/loss", "val/loss_local_float32", "val/acc_avg"} <= known
    assert told[-1] == {f"val/{name}{end}" for name in ("loss", "acc") for end in ENDS}

    class Calling(Client):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            entry = {"scheduler": plateau, "monitor": "val/own"}
            return {"optimizer": optimizer, "lr_scheduler": entry}

        def training_step(self, batch, batch_idx):
            self.log("val/own", 1.0)
            return super().training_step(batch, batch_idx)

    # what a client calls so is no metric of the server's
    with pytest.raises(ValueError, match="must be a logged metric, got 'val/own'"):
        fit(tmp_path / "own", DPFedAvg(), {32: 2}, Calling, **options)
    # on what the client itself logs, a rate may follow train/loss
    restart = {"lr_schedule": "restart", "max_rounds": 1}
    trained(tmp_path, DPFedAvg(), Data(2), 2, lambda: Following("train/loss"), **restart)


def test_a_link_that_others_make_slow_has_no_deadline(tmp_path):
    shared = SimulatedNetwork(shared_uplink=True, deadline_seconds=30.0)
    with pytest.raises(ValueError, match=r"shared_uplink must be false where network\.deadline"):
        trained(tmp_path, DPFedAvg(), Data(2), 2, network=shared)
    assert not list(tmp_path.iterdir())


def test_what_the_guarantee_leaves_out_is_said_at_the_start(tmp_path):
    with pytest.warns(UserWarning, match=r"outside of it, .*train/loss among them, clients\.csv"):
        trained(tmp_path, DPFedAvg(), Data(2), 2, max_rounds=1)


def test_without_dp_accounting_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    _one_round.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'bhfl\[dp\]'") as refused:
        trained(tmp_path, DPFedAvg(), Data(2), 2, max_rounds=1)
    assert exit_code(refused.value) == BAD_CONFIG
    trained(tmp_path, DPFedAvg(noise_multiplier=0.0), Data(2), 2, max_rounds=1)


@pytest.mark.parametrize(
    "options",
    [
        {"noise_multiplier": 1e-6},
        {"noise_multiplier": 1e6, "quantile": 0.5},
        {"noise_multiplier": 3.0, "count_noise": 1.5000000000000002, "quantile": 0.5},
        {"noise_multiplier": 1.0, "count_noise": 1e6, "quantile": 0.5, "rate": 10},
        {"bound": 1e-300},
        {"bound": 1e300, "noise_multiplier": 0},
        {"delta": 1e-300},
        {"delta": 0.9999999999999999},
    ],
)
def test_options_at_their_ends_run(tmp_path, options):
    run = trained(tmp_path, DPFedAvg(**options), Data(2), 2, max_rounds=2)
    assert run.server.round == 2
    assert run.run.history[-1].get("privacy/epsilon", 0) >= 0
