"""Rules that combine updates, over the client halves of other algorithms."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from bhfl.algorithms import (
    MOON,
    SCAFFOLD,
    ClippedMean,
    Ditto,
    FedAvg,
    FedDyn,
    FedNova,
    FedPAQ,
    FedPer,
    FedProx,
    GroupedAvg,
    Krum,
    Local,
    Median,
    ProWD,
)
from bhfl.algorithms.prowd import Mask
from bhfl.algorithms.rules import Rule
from bhfl.engine.algorithm import Algorithm
from tests.algorithms.quadratics import Data, Module
from tests.algorithms.test_options import Plain
from tests.federation import fit, same

ROUNDS, LR = 20, 0.05
MIXED = {"ternary": 2, 32: 2}
ALPHA = 0.3


def wild():
    """Seven clients, of which one is far off."""
    data = Data(7)
    data.t[6] = 30
    return data


def scaffold(h, t, steps):
    """Medians of weights and of the moves of control variates."""
    w = c = np.zeros_like(t[0])
    own = np.zeros_like(t)
    for _ in range(ROUNDS):
        ends = np.stack(len(t) * [w])
        for _ in range(steps):
            ends = ends - LR * (h * (ends - t) - own + c)
        moves = (w - ends) / (steps * LR) - c
        own = own + moves
        c = c + np.median(moves, 0)
        w = np.median(ends, 0)
    return w


def feddyn(h, t, steps):
    """Medians of weights, from which the server's dual variable follows."""
    w = dual = np.zeros_like(t[0])
    own = np.zeros_like(t)
    for _ in range(ROUNDS):
        ends = np.stack(len(t) * [w])
        for _ in range(steps):
            ends = ends - LR * (h * (ends - t) - own + ALPHA * (ends - w))
        own = own - ALPHA * (ends - w)
        median = np.median(ends, 0)
        dual = dual - ALPHA * (median - w)
        w = median - dual / ALPHA
    return w


@pytest.mark.parametrize(("client", "recursion"), [(SCAFFOLD(), scaffold), (FedDyn(ALPHA), feddyn)])
def test_the_median_of_another_method(tmp_path, client, recursion):
    data = wild()
    quiet = {"checkpoint_every_n_rounds": 1000, "check_val_every_n_rounds": 1000}
    run = fit(tmp_path, Median(client), {32: 7}, Module, data, max_rounds=ROUNDS, **quiet)
    expected = recursion(data.h.double().numpy(), data.t.double().numpy(), data.steps)
    found = run.server.params["weight"].double().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(found).max() < 5


def methods():
    return {
        "SCAFFOLD": SCAFFOLD(),
        "FedDyn": FedDyn(),
        "FedPer": FedPer(["net.5"]),
        "Ditto": Ditto(),
    }


def trained(folder, algorithm, **options):
    return fit(folder, algorithm, MIXED, Plain, max_rounds=2, **options)


def alike(one, other):
    """The same models, what clients keep, bytes and metrics, to the bit."""
    assert same(one.server.params, other.server.params)
    assert one.run.ledger.by_group == other.run.ledger.by_group
    for client in range(4):
        kept = [run.session.store.load(client, 2) or {} for run in (one, other)]
        assert kept[0].keys() == kept[1].keys()
        assert all(same(kept[0][part], kept[1][part]) for part in kept[0])
    for old, new in zip(one.run.history, other.run.history, strict=True):
        common = {key for key in old.keys() & new.keys() if key.startswith(("val", "train"))}
        assert common
        assert all(old[key] == new[key] for key in common)


@pytest.mark.parametrize("name", methods())
def test_rules_that_change_nothing_leave_a_method_as_it_is(tmp_path, name):
    plain = trained(tmp_path, methods()[name])
    alike(plain, trained(tmp_path, ClippedMean(1e9, client=methods()[name])))
    if name != "FedPer":
        options = {"dequantizer": None, "global_models": "single", "delta_ref": "broadcast"}
        alike(plain, trained(tmp_path, ProWD(None, client=methods()[name], **options)))


def test_prowd_over_fedavg_is_prowd(tmp_path):
    options = {"dequantizer": None, "global_models": "single"}
    runs = [
        trained(tmp_path, ProWD(Mask(coarse=None), client=c, **options)) for c in (None, FedAvg())
    ]
    alike(*runs)
    other = trained(tmp_path, ProWD(Mask(coarse=None), client=SCAFFOLD(), **options))
    assert not same(other.server.params, runs[0].server.params)
    assert "prowd/mask_keep" in other.run.history[-1]
    assert other.server.extra["control"]["net.0.weight"].abs().max() > 0


def test_the_server_s_optimiser_steps_once(tmp_path):
    make = partial(torch.optim.SGD, lr=0.5)
    runs = [
        trained(tmp_path, algorithm, server_optimizer=make)
        for algorithm in (FedAvg(), ClippedMean(1e9), ClippedMean(1e9, client=FedProx(0.0)))
    ]
    assert same(runs[0].server.params, runs[1].server.params)
    assert same(runs[0].server.params, runs[2].server.params)


def test_what_a_wild_client_sends_besides_weights_is_clipped_too(tmp_path):
    algorithm = ClippedMean(0.1, client=SCAFFOLD(control_bits=32))
    run = fit(tmp_path, algorithm, {32: 7}, Module, wild(), max_rounds=1)
    moves = [run.server.params["weight"], run.server.extra["control"]["weight"]]
    assert 0 < sum(float(move.square().sum()) for move in moves) ** 0.5 <= 0.1 + 1e-6


@pytest.mark.parametrize("client", [FedNova(), FedPAQ(), GroupedAvg(), Local(), Krum()])
def test_a_method_that_makes_something_else_of_updates_is_refused(tmp_path, client):
    message = (
        f"Median.client must average what clients send as it is, .* got {type(client).__name__}"
    )
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Median(client), {32: 7}, Module, Data(7), min_clients=5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Median("SCAFFOLD"), r"Median\.client must be an Algorithm such as SCAFFOLD\(\)"),
        (lambda: ProWD(dequantizer=None, client=FedDyn()), r"needs ProWD\.global_models: single"),
    ],
)
def test_an_argument_out_of_its_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_client_half_is_that_of_the_innermost(tmp_path):
    client = MOON("net.3")
    assert Median(client).client_half is client
    assert Median(Ditto()).own_model
    assert not Median().own_model
    whole = ProWD()
    assert whole.client_half is whole


def test_a_rule_hands_on_all_that_it_does_not_do_itself() -> None:
    """Hooks of the client half go to `client_half`, and what becomes of updates is the rule's."""
    own = {"aggregator", "reconstruct", "apply_mean", "server_optimizer"}
    clients = "init_client receive num_steps client_loss client_gradients_ uplink client_close"
    hooks = {name for name in vars(Algorithm) if not name.startswith("_")}
    hooks = {name for name in hooks if callable(getattr(Algorithm, name))}
    assert hooks - own - set(clients.split()) <= vars(Rule).keys()
