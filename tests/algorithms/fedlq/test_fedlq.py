"""FedLQ as an algorithm: budgets kept to the byte, plans, probes, and what is logged."""

import math
import re

import pytest
import torch
from torch import nn

from bhfl.algorithms import FedLQ
from bhfl.algorithms.fedlq import Budget, Sensitivity
from bhfl.algorithms.fedlq.allocation import layer_bits
from bhfl.algorithms.fedlq.budget import rounded_down
from bhfl.algorithms.fedlq.significance import probe
from bhfl.comm import decode, header_bytes
from bhfl.comm.network import Profile, SimulatedNetwork
from bhfl.engine.client.local import LocalClients
from bhfl.quant import QuantizedTensor, layer_weights
from tests.federation import Client, Net, code_bytes, fake, fit, same

SIZES = {"net.0.weight": 45, "net.3.weight": 1040, "net.5.weight": 52}
SIDE = 5 + 13 + 4


def held(**options):
    return fake(holdout=12, **options)


def network(deadline=None, **options):
    rates = {"uplink_bps": 2e4, "downlink_bps": 8e4, "compute_flops": 1e9, "spread": 0.5, **options}
    return SimulatedNetwork("slow", {"slow": Profile(**rates)}, deadline_seconds=deadline)


@pytest.fixture
def payloads(monkeypatch):
    """Every uplink of the runs of a test, by client."""
    sent = []
    uplink = LocalClients._uplink

    def spy(self, run):
        payload = uplink(self, run)
        sent.append((run.round, run.client.id, payload))
        return payload

    monkeypatch.setattr(LocalClients, "_uplink", spy)
    return sent


def bits_of(payload):
    """Bits of the layers, by name."""
    found = {
        n: t for n, t in decode(payload).items() if isinstance(t, QuantizedTensor) or t.ndim >= 2
    }
    found.pop(":harm", None)
    return {name: t.bits if isinstance(t, QuantizedTensor) else 32 for name, t in found.items()}


@pytest.mark.parametrize("payload", ["weights", "delta"])
@pytest.mark.parametrize("solver", ["dp", "greedy", "greedy_down"])
def test_average_bits_are_kept_to_the_byte(tmp_path, payloads, payload, solver):
    for average in (2, 3.7, 9):
        payloads.clear()
        run = fit(
            tmp_path,
            FedLQ(payload, budget=Budget(average_bits=average), solver=solver),
            {32: 3},
            data=held(),
            max_rounds=2,
        )
        for _, _, message in payloads:
            bits = bits_of(message)
            took = sum(layer_bits(SIZES[name], width) for name, width in bits.items())
            assert took <= sum(8 * math.ceil(average * size / 8) + 32 for size in SIZES.values())
            sent = sum(4 + code_bytes(SIZES[name], width) for name, width in bits.items())
            # a plan takes two bits for what is sent in 1.6
            assert len(message) - header_bytes(message) == sent + 4 * SIDE
            assert 8 * sent <= took
        row = run.run.history[-1]
        assert row["fedlq/bits"] <= average + 8 * len(SIZES) / sum(SIZES.values())
        found = [row[f"fedlq/bits_{name}"] * size for name, size in SIZES.items()]
        assert row["fedlq/bits"] == pytest.approx(sum(found) / sum(SIZES.values()))
        assert row["fedlq/infeasible"] == 0


FLOATS = {"candidates": [32], "budget": Budget(average_bits=32)}
SETTINGS = {
    "plain": {},
    "batch norm": {"module": lambda: Client(Net(batch_norm=True)), "norm": "average"},
    "batch norm by group": {"module": lambda: Client(Net(batch_norm=True))},
    "few steps": {"local_steps": 3},
    "half the fleet": {"clients_per_round": 3},
    "clients probe": {"sensitivity": "clients"},
}


def timed(folder, plan, deadline=None, rule="deadline", setting="plain", **options):
    settings = {"data": held(), "network": network(deadline), **SETTINGS[setting], **options}
    algorithm = FedLQ(
        "delta",
        budget=Budget(rule, average_bits=3, quantile=0.7),
        sensitivity=Sensitivity(settings.pop("sensitivity", "server"), refresh=2),
        plan=plan,
    )
    return fit(folder, algorithm, {8: 2, 32: 3}, **settings)


def plans_and_settings():
    """Each setting with one of the plans, which take turns, and among the slow tests with both."""
    plans, cases = ("client", "server"), []
    for place, setting in enumerate(SETTINGS):
        quick, slow = plans[place % 2], plans[1 - place % 2]
        cases.append(pytest.param(quick, setting, id=f"{quick}-{setting}"))
        marks = pytest.mark.slow
        cases.append(pytest.param(slow, setting, id=f"{slow}-{setting}", marks=marks))
    return cases


@pytest.mark.parametrize(("plan", "setting"), plans_and_settings())
def test_time_budgets_are_spent_and_nobody_is_late(tmp_path, payloads, plan, setting):
    for deadline in (2.5, 2.77, 3.1):
        run = timed(tmp_path, plan, deadline, setting=setting)
        for row in run.run.history:
            assert row["clients/late"] == row["fedlq/infeasible"] == 0
            assert 0.8 * deadline < row["time/simulated_round_s"] <= deadline
    # by client and round
    assert len({tuple(bits_of(message).values()) for _, _, message in payloads}) > 4
    assert all(max(bits_of(message).values()) <= 8 for _, client, message in payloads if client < 2)


@pytest.mark.parametrize(("plan", "setting"), plans_and_settings())
def test_the_quantile_is_the_share_that_can_send_the_average(tmp_path, payloads, plan, setting):
    run = timed(tmp_path, plan, rule="quantile", setting=setting)
    for round in range(3):
        mine = [message for number, _, message in payloads if number == round]
        layers = [
            sum(
                layer_bits(size, b)
                for size, b in zip(SIZES.values(), bits_of(message).values(), strict=True)
            )
            for message in mine
        ]
        least = sum(layer_bits(size, 2) for size in SIZES.values())
        average = sum(layer_bits(size, 3) for size in SIZES.values())
        assert sum(bits > (least + average) / 2 for bits in layers) >= math.ceil(0.7 * len(mine))
    assert all(row["clients/late"] == 0 for row in run.run.history)


def test_a_quantile_is_never_after_the_networks_deadline(tmp_path):
    run = timed(tmp_path, "client", 2.5, rule="quantile")
    assert all(
        row["time/simulated_round_s"] <= 2.5 and not row["clients/late"] for row in run.run.history
    )


def test_the_downlink_is_the_formula(tmp_path):
    for plan, extra in (("client", 4 * (len(SIZES) + 1)), ("server", len(SIZES))):
        run = fit(tmp_path, FedLQ(plan=plan), {32: 2}, data=held(), max_rounds=1)
        row = run.run.history[0]
        down = row["downlink_bytes"] - 2 * (4 * (sum(SIZES.values()) + SIDE) + extra)
        up = row["uplink_bytes"] - sum(
            code_bytes(SIZES[name], int(row[f"fedlq/bits_{name}"])) + 4
            for name in SIZES
            for _ in range(2)
        )
        assert down + up == row["header_bytes"] + 2 * 4 * SIDE


def test_payloads_below_the_least_are_late_or_skipped(tmp_path, payloads):
    for rule, status in (("late", "clients/late"), ("skip", "clients/skipped")):
        for plan in ("client", "server"):
            payloads.clear()
            algorithm = FedLQ(budget=Budget("deadline"), infeasible=rule, plan=plan)
            with pytest.warns(UserWarning, match=rule[:4]):
                run = fit(
                    tmp_path,
                    algorithm,
                    {32: 4},
                    data=held(),
                    network=network(0.7, spread=0.9),
                    max_rounds=1,
                )
            row = run.run.history[0]
            assert row[status] == 2
            assert row["clients/ok"] == 2
            silent = [message for _, _, message in payloads if message is None]
            assert len(silent) == (2 if rule == "skip" else 0)


def test_codes_of_a_limited_client_travel_as_they_are(tmp_path, payloads):
    eight = {"candidates": [2, 8], "budget": Budget(average_bits=8)}
    run = fit(tmp_path, FedLQ(**eight), {8: 2}, data=held(), max_rounds=1)
    assert all(set(bits_of(message).values()) == {8} for _, _, message in payloads)
    assert all(run.run.history[0][f"fedlq/variance_{name}"] == 0 for name in SIZES)
    delta = fit(tmp_path, FedLQ("delta", **eight), {8: 2}, data=held(), max_rounds=1)
    assert all(delta.run.history[0][f"fedlq/variance_{name}"] > 0 for name in SIZES)


class _Unused(nn.Module):
    """Its second layer does nothing."""

    def __init__(self):
        super().__init__()
        self.net, self.idle = Net(), nn.Linear(4, 4)

    def forward(self, x):
        y = self.net(x)
        return y + 0 * self.idle(y)


def test_an_unused_layer_gets_the_fewest_bits(tmp_path):
    run = fit(
        tmp_path,
        FedLQ(budget=Budget(average_bits=8), sensitivity=Sensitivity(shrinkage=1.0)),
        {32: 2},
        lambda: Client(_Unused()),
        held(),
        max_rounds=1,
    )
    assert run.run.history[0]["fedlq/bits_net.idle.weight"] == 2
    assert run.server.extra["probe"]["harm"][-1].tolist() == [0, 0]


def test_the_server_probes_the_model_that_it_sends(tmp_path):
    algorithm = FedLQ(sensitivity=Sensitivity(refresh=2, decay=0.0, shrinkage=1.0))
    run = fit(tmp_path, algorithm, {32: 2}, data=held(), max_rounds=1)
    torch.manual_seed(0)
    fresh = Client()
    data = held()
    data.setup("fit")
    data.federate(2, 0)

    def evaluate(model):
        ((x, y),) = data.holdout_batches()
        return float(nn.functional.cross_entropy(fresh.net(x), y)), 0.0

    expected = probe(fresh, layer_weights(fresh), (2, 4), evaluate)
    assert torch.allclose(run.server.extra["probe"]["harm"], expected.harm, atol=1e-6)
    assert torch.allclose(run.server.extra["probe"]["distortion"], expected.distortion, rtol=1e-6)


def test_probes_are_refreshed_and_averaged(tmp_path):
    """Round 0 and round 2 probe; what lasts is 0.7 of the first and 0.3 of the second."""

    def harm(rounds, **more):
        # training does not depend on the probes
        sensitivity = Sensitivity(refresh=2, shrinkage=1e-9, **more)
        algorithm = FedLQ(sensitivity=sensitivity, **FLOATS)
        run = fit(tmp_path, algorithm, {32: 2}, data=held(), max_rounds=rounds)
        return run.server.extra["probe"]["harm"]

    first, second = harm(1), harm(3, decay=0.0)
    assert torch.equal(harm(2), first)
    assert not torch.equal(first, second)
    assert torch.allclose(harm(3), 0.7 * first + 0.3 * second)


def test_a_probe_that_a_skipped_round_lost_is_made_again(tmp_path):
    class Late(Client):
        def training_step(self, batch, batch_idx):
            if calls:
                calls.pop()
                raise RuntimeError("not yet")
            return super().training_step(batch, batch_idx)

    calls = [1]
    # whose trial would be the first call
    options = {"max_rounds": 2, "min_clients": 2, "channels_last": False}
    with pytest.warns(UserWarning, match="not yet"):
        run = fit(
            tmp_path, FedLQ(sensitivity=Sensitivity(refresh=5)), {32: 2}, Late, held(), **options
        )
    assert run.run.history[0]["clients/ok"] == 1
    assert "fedlq/bound" not in run.run.history[0]
    assert run.server.extra["probe"] is not None


def test_tied_weights_are_one_layer(tmp_path):
    class Tied(nn.Module):
        """The parent's name of the shared weight comes first in the state dict."""

        def __init__(self):
            super().__init__()
            layer = nn.Linear(36, 4)
            self.shared = layer.weight
            self.layer = layer

        def forward(self, x):
            return self.layer(x.flatten(1)) + x.flatten(1) @ self.shared.T

    algorithm = FedLQ(budget=Budget(average_bits=3))
    run = fit(tmp_path, algorithm, {32: 2}, lambda: Client(Tied()), held(), max_rounds=1)
    assert run.algorithm.layers == ["net.shared"]
    assert run.run.history[0]["fedlq/bits_net.shared"] == 3


def test_clients_probe_where_the_server_has_no_data(tmp_path, payloads):
    algorithm = FedLQ(sensitivity=Sensitivity("clients", refresh=2))
    run = fit(tmp_path, algorithm, {8: 1, 32: 2}, max_rounds=3)
    with_harm = {round for round, _, message in payloads if ":harm" in decode(message)}
    assert with_harm == {0, 2}
    assert run.server.extra["probe"]["harm"].shape == (3, 2)
    assert (run.server.extra["probe"]["harm"] >= 0).all()
    sent = run.run.history
    assert sent[0]["uplink_bytes"] > 0
    harmless = fit(
        tmp_path, FedLQ(sensitivity=Sensitivity(shrinkage=0.0)), {8: 1, 32: 2}, max_rounds=1
    )
    assert harmless.server.extra["probe"] is None


def test_training_is_not_changed_by_probing(tmp_path):
    never = FedLQ(sensitivity=Sensitivity(shrinkage=0.0), **FLOATS)
    by_clients = FedLQ(sensitivity=Sensitivity("clients", refresh=1), **FLOATS)
    by_server = FedLQ(sensitivity=Sensitivity(refresh=1), **FLOATS)
    plain = fit(tmp_path, never, {32: 2})
    probed = fit(tmp_path, by_clients, {32: 2})
    server = fit(tmp_path, by_server, {32: 2}, data=held())
    without = fit(tmp_path, never, {32: 2}, data=held())
    assert same(plain.server.params, probed.server.params)
    assert same(server.server.params, without.server.params)


def test_the_bound_falls_with_the_bits(tmp_path):
    rows = []
    for bits in (2, 4, 8, 32):
        algorithm = FedLQ(budget=Budget(average_bits=bits))
        rows += fit(tmp_path, algorithm, {32: 3}, data=held(), max_rounds=1).run.history
    terms = [row["fedlq/bound_quantisation"] for row in rows]
    assert terms == sorted(terms, reverse=True)
    assert terms[-1] == 0
    for row in rows:
        by_layer = [row[f"fedlq/bound_{name}"] for name in SIZES]
        assert math.fsum(by_layer) == pytest.approx(row["fedlq/bound_quantisation"])
        assert row["fedlq/bound"] > row["fedlq/bound_quantisation"]


def test_resumes_to_the_bit(tmp_path):
    own = {"sensitivity": Sensitivity(refresh=2)}
    for name, options in {"c": own, "s": {"plan": "server", "payload": "delta"}}.items():
        whole = fit(
            tmp_path / name / "a", FedLQ(**options), {8: 1, 32: 2}, data=held(), max_rounds=4
        )
        fit(tmp_path / name / "b", FedLQ(**options), {8: 1, 32: 2}, data=held(), max_rounds=2)
        again = fit(
            tmp_path / name / "b",
            FedLQ(**options),
            {8: 1, 32: 2},
            data=held(),
            max_rounds=4,
            ckpt_path="last",
        )
        assert same(whole.server.params, again.server.params)


def test_mixed_widths_of_differences_average_to_the_mean(tmp_path, payloads):
    """One client sends values, another quantised differences of the same layer."""
    algorithm = FedLQ("delta", [2, 32], Budget(average_bits=32))
    run = fit(tmp_path, algorithm, {2: 1, 32: 1}, data=held(), max_rounds=1)
    torch.manual_seed(0)
    start = Client().state_dict()
    updates = {client: decode(message) for _, client, message in payloads}
    weights = {client.id: client.weight for client in run.clients}
    for name in SIZES:
        low = start[name] - updates[0][name].dequantize()
        mean = (weights[0] * low.double() + weights[1] * updates[1][name].double()) / sum(
            weights.values()
        )
        assert torch.allclose(run.server.params[name].double(), mean, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FedLQ(candidates=[]),
            "FedLQ.candidates must name at least one bit-width, got none",
        ),
        (
            lambda: FedLQ(candidates=[17]),
            "FedLQ.candidates must be distinct widths of 0..16 or 32, got [17]",
        ),
        (
            lambda: FedLQ(candidates=[2.5, 8]),
            "FedLQ.candidates must be distinct widths of 0..16 or 32, got [2.5, 8]",
        ),
        (
            lambda: FedLQ(candidates=["4", True]),
            "FedLQ.candidates must be distinct widths of 0..16 or 32, got ['4', True]",
        ),
        (
            lambda: FedLQ("delta", [0], error_feedback=True),
            "must hold a width besides 0, with which nothing is ever sent, got [0]",
        ),
        (
            lambda: FedLQ(candidates=[8, 8]),
            "FedLQ.candidates must be distinct widths of 0..16 or 32, got [8, 8]",
        ),
        (
            lambda: Budget(average_bits=0),
            "FedLQ.budget.average_bits must be in (0, 1e9], got 0",
        ),
        (
            lambda: Budget(average_bits=-3),
            "FedLQ.budget.average_bits must be in (0, 1e9], got -3",
        ),
        (
            lambda: Budget("time"),
            "FedLQ.budget.rule must be one of average, deadline, quantile, got 'time'",
        ),
        (lambda: Budget(quantile=0.0), "FedLQ.budget.quantile must be in (0, 1], got 0.0"),
        (
            lambda: FedLQ(budget=Budget(average_bits=1)),
            "FedLQ.budget.average_bits must be at least 2, the fewest of candidates, got 1",
        ),
        (lambda: FedLQ(budget="average"), "FedLQ.budget must be a Budget, got 'average'"),
        (lambda: FedLQ(budget=None), "FedLQ.budget must be a Budget, got None"),
        (
            lambda: FedLQ(sensitivity="clients"),
            "FedLQ.sensitivity must be a Sensitivity, got 'clients'",
        ),
        (
            lambda: FedLQ(solver="best"),
            "FedLQ.solver must be one of dp, greedy, greedy_down, got 'best'",
        ),
        (
            lambda: FedLQ(payload="model"),
            "FedLQ.payload must be one of weights, delta, got 'model'",
        ),
        (lambda: FedLQ(plan="x"), "FedLQ.plan must be one of client, server, got 'x'"),
        (
            lambda: FedLQ(infeasible="x"),
            "FedLQ.infeasible must be one of late, skip, carry, got 'x'",
        ),
        (
            lambda: Sensitivity(refresh=0),
            "FedLQ.sensitivity.refresh must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (
            lambda: Sensitivity(samples=0),
            "FedLQ.sensitivity.samples must be an integer from 1 to 2,147,483,648, got 0",
        ),
        (lambda: Sensitivity(decay=1.0), "FedLQ.sensitivity.decay must be in [0, 1), got 1.0"),
        (
            lambda: Sensitivity(shrinkage=2.0),
            "FedLQ.sensitivity.shrinkage must be in [0, 1], got 2.0",
        ),
        (
            lambda: Sensitivity(bits=[1]),
            "FedLQ.sensitivity.bits must be distinct widths of 2..16, got [1]",
        ),
        (lambda: Sensitivity(bits=[]), "bits must be distinct widths of 2..16, got []"),
        (lambda: Sensitivity(bits=[2.5]), "bits must be distinct widths of 2..16, got [2.5]"),
        (lambda: Sensitivity(bits=[4, 4]), "bits must be distinct widths of 2..16, got [4, 4]"),
        (
            lambda: Sensitivity("no"),
            "FedLQ.sensitivity.source must be one of server, clients, got 'no'",
        ),
        (
            lambda: Sensitivity(metric="f1"),
            "FedLQ.sensitivity.metric must be one of loss, accuracy, got 'f1'",
        ),
        (
            lambda: Sensitivity(joint="x"),
            "FedLQ.sensitivity.joint must be one of ratio, convex, got 'x'",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_what_does_not_fit_together(tmp_path):
    class Bare(Client):
        def validation_step(self, batch, batch_idx):
            return None

    cases = [
        (
            FedLQ(),
            {},
            "data.holdout must be at least 1 for FedLQ.sensitivity.source: server, got 0",
        ),
        (
            FedLQ(candidates=[8], budget=Budget(average_bits=8)),
            {"clients": {2: 1, 32: 1}},
            "a width of at most 2 besides 0 for ternary clients",
        ),
        (
            FedLQ("delta", [0, 32], error_feedback=True),
            {"clients": {8: 1, 32: 1}},
            "a width of at most 8 besides 0 for int8 clients, got [0, 32]",
        ),
        (
            FedLQ(budget=Budget("quantile")),
            {"data": held()},
            "FedLQ.budget.rule: quantile needs a simulated network",
        ),
        (
            FedLQ(budget=Budget("deadline")),
            {"data": held(), "network": network()},
            "needs network.deadline_seconds, got null",
        ),
        (
            FedLQ(),
            {"data": held(), "norm": "local", "module": lambda: Client(Net(batch_norm=True))},
            "trainer.norm: local keeps running statistics on the clients",
        ),
        (
            FedLQ(),
            {"data": held(), "module": lambda: Client(_OneParameter())},
            "has no quantisable layer",
        ),
        (
            FedLQ(),
            {"data": held(), "module": Bare},
            "FedLQ probes the validation loss, which the model does not log",
        ),
    ]
    for algorithm, options, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            fit(tmp_path, algorithm, **options)


class _OneParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.flatten(1)[:, :4] * self.scale


@pytest.mark.parametrize("value", [0.1, 1.0, 5.7, 1e-9, 123456.789])
def test_a_deadline_is_never_sent_later_than_it_is(value):
    sent = float(rounded_down(value))
    assert sent <= value
    assert sent == pytest.approx(value, rel=2e-7)
