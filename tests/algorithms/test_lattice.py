"""Which method is which in which limit, to the bit."""

import pytest

from bhfl.algorithms import (
    AdaQuantFL,
    FedAvg,
    FedCOM,
    FedCOMGATE,
    FedLQ,
    FedPAQ,
    FedProx,
    GroupedAvg,
    GroupedAvgAsymmetric,
    Local,
)
from bhfl.algorithms.fedlq import Budget, Sensitivity
from tests.federation import Client, fake, fit, same

MIXED = {8: 2, 32: 2}
FLOATS = {32: 3}
EQUAL = [
    ("FedProx mu=0 is FedAvg", FedProx(0.0), FedAvg(), MIXED),
    ("FedPAQ b=32 is FedAvg", FedPAQ(32), FedAvg(), FLOATS),
    ("FedCOM b=32, gamma=1 is FedAvg", FedCOM(32), FedAvg(), FLOATS),
    ("FedCOM gamma=1 is FedPAQ", FedCOM(4), FedPAQ(4), MIXED),
    ("FedCOM gamma=1 is FedPAQ, l2 buckets", FedCOM(4, 1.0, "l2", 7), FedPAQ(4, "l2", 7), MIXED),
    ("a bucket that holds each tensor is no bucket", FedPAQ(4, "linf", 10**6), FedPAQ(4), MIXED),
    ("GroupedAvg of one width is FedAvg", GroupedAvg(), FedAvg(), FLOATS),
    ("GroupedAvg of one low width is FedAvg", GroupedAvg(), FedAvg(), {4: 3}),
    ("Asymmetric of one width is FedAvg", GroupedAvgAsymmetric(), FedAvg(), FLOATS),
]


@pytest.mark.parametrize(
    ("first", "second", "clients"), [row[1:] for row in EQUAL], ids=[row[0] for row in EQUAL]
)
def test_equal_to_the_bit(tmp_path, first, second, clients):
    runs = [fit(tmp_path, algorithm, clients) for algorithm in (first, second)]
    assert same(runs[0].server.params, runs[1].server.params)
    rows = [
        [{k: v for k, v in row.items() if "time" not in k} for row in run.run.history]
        for run in runs
    ]
    assert rows[0] == rows[1]


NO_LIMIT = Budget(average_bits=32)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FedLQ("weights", budget=NO_LIMIT, sensitivity=Sensitivity("clients")), FedAvg()),
        (FedLQ("delta", budget=NO_LIMIT, sensitivity=Sensitivity("clients")), FedAvg()),
        (FedLQ("delta", [8], Budget(average_bits=8), Sensitivity(shrinkage=0.0)), FedPAQ(8)),
        (AdaQuantFL(4, max_bits=4), FedPAQ(4)),
    ],
    ids=[
        "FedLQ without a limit is FedAvg",
        "so is FedLQ-delta",
        "FedLQ-delta of one width is FedPAQ",
        "AdaQuantFL",
    ],
)
def test_the_same_model_with_other_bytes(tmp_path, first, second):
    runs = [fit(tmp_path, algorithm, FLOATS) for algorithm in (first, second)]
    assert same(runs[0].server.params, runs[1].server.params)


def test_gate_of_identical_clients_is_fedcom(tmp_path):
    """Two clients with the same data: every tracking variable stays exactly zero."""
    runs = []
    for algorithm in (FedCOMGATE(32), FedCOM(32)):
        data = fake(val_fraction=0.0)
        data.client_batches = lambda client, rng, epoch, d=data: type(d).client_batches(
            d, 0, _of_client_zero(rng), epoch
        )
        runs.append(
            fit(tmp_path, algorithm, {32: 2}, lambda: Client(momentum=0.0), data, norm="average")
        )
    assert all(
        _close(runs[0].server.params[name], runs[1].server.params[name])
        for name in runs[0].server.params
    )
    state = runs[0].session.store.load(0, 3)["algorithm"]
    tracked = [tensor for name, tensor in state.items() if name.startswith("tracked/")]
    assert tracked
    assert all(not tensor.any() for tensor in tracked)


def _of_client_zero(rng):
    from bhfl.engine.random import RandomKeys

    return RandomKeys(rng.seed, rng.round, 0)


def _close(a, b):
    return (a - b).abs().max() <= 1e-6


def test_every_client_its_own_group_is_local_training(tmp_path):
    """Twenty-five bits of difference do not matter here: groups of one, each at a width of its
    own.
    """
    clients = {16: 1, 12: 1, 32: 1}
    grouped, local = (
        fit(tmp_path, algorithm, clients, evaluate_clients="none")
        for algorithm in (GroupedAvg(), Local())
    )
    kept = local.session.store.load(2, 3)["staying"]
    assert same(
        grouped.server.extra["models"]["float32"], {n: kept[n] for n in grouped.server.params}
    )
    assert local.run.ledger.total("uplink_bytes") == local.run.ledger.total("downlink_bytes") == 0


def test_local_clients_do_not_depend_on_each_other(tmp_path):
    two = fit(tmp_path, Local(), {8: 1, 32: 1})
    failing = fit(tmp_path, Local(), {8: 1, 32: 1}, module=lambda: _FailsAtEightBits())
    assert failing.run.history[-1]["clients/failed"] == 1
    assert same(
        two.session.store.load(1, 3)["staying"], failing.session.store.load(1, 3)["staying"]
    )


class _FailsAtEightBits(Client):
    def training_step(self, batch, batch_idx):
        if self.net[0].spec.weights == 8:
            raise RuntimeError("no")
        return super().training_step(batch, batch_idx)
