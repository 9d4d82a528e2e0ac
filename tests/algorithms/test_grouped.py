"""Groups never mix, except downwards where they should."""

import pytest
import torch

from bhfl.algorithms import GroupedAvg, GroupedAvgAsymmetric
from bhfl.engine.trainer import FederatedTrainer
from tests.federation import Client, fake, fit, same

CLIENTS = {4: 1, 8: 1, 32: 1}


class Shifted(Client):
    """Clients of one width train on shifted images, so that their updates differ."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step((x + (self.net[0].spec.weights == self.bits), y), batch_idx)


@pytest.mark.parametrize(
    ("algorithm", "moved"),
    [
        (GroupedAvg(), {4: {"int4"}, 8: {"int8"}, 32: {"float32"}}),
        (
            GroupedAvgAsymmetric("ge"),
            {4: {"int4"}, 8: {"int4", "int8"}, 32: {"int4", "int8", "float32"}},
        ),
        (
            GroupedAvgAsymmetric("all"),
            {4: {"int4", "int8"}, 8: {"int4", "int8"}, 32: {"int4", "int8", "float32"}},
        ),
    ],
    ids=["grouped", "ge", "all"],
)
def test_which_groups_a_client_moves(tmp_path, algorithm, moved):
    plain = fit(tmp_path, algorithm, CLIENTS, max_rounds=1).server.extra["models"]
    for bits, groups in moved.items():
        other = fit(
            tmp_path, algorithm, CLIENTS, lambda b=bits: Shifted(b), max_rounds=1
        ).server.extra["models"]
        assert {group for group in plain if not same(plain[group], other[group])} == groups


def test_a_group_without_a_client_keeps_its_model(tmp_path):
    run = fit(
        tmp_path, GroupedAvg(), {8: 4, 32: 1}, clients_per_round=1, sampling="uniform", max_rounds=1
    )
    start = fit(
        tmp_path, GroupedAvg(), {8: 4, 32: 1}, lambda: Client(lr=0.0), max_rounds=1
    ).server.params
    moved = [g for g, model in run.server.extra["models"].items() if not same(model, start)]
    assert len(moved) == 1


def test_the_top_groups_model_is_the_servers(tmp_path):
    run = fit(tmp_path, GroupedAvg(), {32: 1, 4: 2, 8: 1})
    assert run.server.extra["groups"] == ["int4", "int8", "float32"]
    assert same(run.server.params, run.server.extra["models"]["float32"])
    assert run.run.history[-1]["val/acc"] == run.run.history[-1]["val/acc_float32"]


def test_share_weighted_mean_reproduces_the_published_rows():
    rows = [
        (69.59, 75.82, 0.5, 72.71),
        (77.43, 74.64, 0.8, 76.87),
        (79.23, 81.26, 0.8, 79.63),
        (71.76, 78.07, 0.8, 73.02),
    ]
    for low, high, share, average in rows:
        assert share * low + (1 - share) * high == pytest.approx(average, abs=0.011)


def test_the_logged_average_is_weighted_by_clients(tmp_path):
    row = fit(tmp_path, GroupedAvg(), {4: 3, 32: 1}, max_rounds=1).run.history[-1]
    assert row["val/acc_avg"] == pytest.approx(
        0.75 * row["val/acc_int4"] + 0.25 * row["val/acc_float32"]
    )
    assert row["val/acc_min"] == min(row["val/acc_int4"], row["val/acc_float32"])


def test_the_server_optimizer_has_a_state_for_each_group(tmp_path):
    run = fit(
        tmp_path, GroupedAvg(), CLIENTS, server_optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    assert set(run.server.extra["states"]) == {"int4", "int8", "float32"}
    assert all(state[0]["step"] == 3 for state in run.server.extra["states"].values())


def test_a_checkpoint_is_not_measured_with_groups_that_it_has_no_model_of(tmp_path):
    run = fit(tmp_path, GroupedAvg(), {4: 1, 32: 1}, norm="average").run
    other = FederatedTrainer(
        {8: 1, 32: 1}, GroupedAvg(), norm="average", accelerator="cpu", devices=1
    )
    with pytest.raises(
        ValueError, match="clients must be of int4, float32, the groups that have a model, got int8"
    ):
        other.validate(Client(), fake(), run.folder)


def test_bad_rule():
    with pytest.raises(ValueError, match="rule must be one of ge, all, got 'le'"):
        GroupedAvgAsymmetric("le")


def test_uplink_and_downlink_bytes_are_the_formula(tmp_path):
    run = fit(tmp_path, GroupedAvg(), CLIENTS, max_rounds=1)
    weights = [tensor.numel() for tensor in run.server.params.values() if tensor.ndim >= 2]
    rest = sum(tensor.numel() for tensor in run.server.params.values() if tensor.ndim < 2)
    up = (
        sum(-(-d * bits // 8) + 4 for d in weights for bits in (4, 8))
        + 4 * sum(weights)
        + 3 * 4 * rest
    )
    down = 3 * 4 * (sum(weights) + rest)
    ledger = run.run.ledger
    total = (
        ledger.total("uplink_bytes") + ledger.total("downlink_bytes") - ledger.total("header_bytes")
    )
    assert total == up + down
