"""Clients that send other bits than they compute with, in whole rounds."""

from pathlib import Path
from typing import Any

import pytest

from bhfl.algorithms import FedAvg, GroupedAvg, ProWD
from bhfl.algorithms.fedlq.plan import check_clients
from bhfl.algorithms.prowd import Dequantizer, Mask
from bhfl.quant import QuantizedTensor
from tests.federation import Client, fake, fit, same

STORED = {"weights": 2, "activations": 8, "range_rule": "mse", "send_bits": 8}
FLEET = [{"bits": STORED, "count": 2}, {"bits": "ternary", "count": 1}, {"bits": 32, "count": 2}]


class Seen(FedAvg):
    """Notes the bits of the codes that come."""

    def reconstruct(self, update: Any, client: Any, server: Any) -> Any:
        for value in update.values():
            if isinstance(value, QuantizedTensor):
                arrived.setdefault(client.group, set()).add(value.bits)
        return super().reconstruct(update, client, server)


arrived: dict[str, set[int]] = {}


class Forward(Client):
    """A client with a forward pass, through which ProWD distils."""

    def forward(self, x: Any) -> Any:
        return self.net(x)


def test_what_is_sent_is_what_arrives_and_is_counted(tmp_path: Path) -> None:
    arrived.clear()
    row = fit(tmp_path, Seen(), FLEET, max_rounds=1).run.history[-1]
    assert arrived == {"ternary-s8": {8}, "ternary": {2}}
    assert row["clients/ok"] == 5
    assert {"val/acc_ternary-s8", "val/acc_ternary"} <= set(row)


@pytest.mark.parametrize("algorithm", [GroupedAvg, lambda: ProWD(Mask(tau=0.5), None)])
def test_what_goes_by_bits_goes_by_those_that_are_sent_too(tmp_path: Path, algorithm: Any) -> None:
    trainer = fit(tmp_path, algorithm(), FLEET)
    assert [row["clients/ok"] for row in trainer.run.history] == [5] * 3
    assert len({client.bits for client in trainer.clients}) == 3


def test_the_dequantizer_raises_the_bits_that_are_sent(tmp_path: Path) -> None:
    quick = Dequantizer(warmup_rounds=1, period=2, first_steps=6, steps=3, buffer_size=8)
    runs = []
    for name, rounds, ckpt_path in (("a", 3, None), ("b", 2, None), ("b", 3, "last")):
        runs.append(
            fit(
                tmp_path / name,
                ProWD(dequantizer=quick),
                FLEET,
                Forward,
                fake(88, holdout=8),
                max_rounds=rounds,
                ckpt_path=ckpt_path,
            )
        )
    assert runs[0].algorithm.tuning.ladder == [2, 4, 8, 16, 32]
    assert [row["clients/ok"] for row in runs[0].run.history] == [5] * 3
    assert same(runs[0].server.params, runs[2].server.params)
    with pytest.raises(ValueError, match=r"ladder must hold every width .* without 8"):
        fit(tmp_path, ProWD(dequantizer=Dequantizer(ladder=[2, 4, 32])), FLEET, Forward)


def test_bytes_and_fedlq_go_by_what_is_sent(tmp_path: Path) -> None:
    runs = [fit(tmp_path, clients=[fleet], max_rounds=1) for fleet in FLEET[:2]]
    stored, computed = (run.run.history[-1]["comm/uplink_MB"] / len(run.clients) for run in runs)
    # a byte instead of a fifth of one for each of 1137 weights
    assert 900 < (stored - computed) * 1e6 < 920
    check_clients(runs[0].clients, [4, 8])
    with pytest.raises(ValueError, match="a width of at most 2 besides 0 for ternary clients"):
        check_clients(runs[1].clients, [4, 8])


def test_stored_integers_are_sent(tmp_path: Path) -> None:
    arrived.clear()
    fit(tmp_path, Seen(), {"wage2888-stored": 1, "wage2888": 1, 32: 1}, max_rounds=1)
    assert arrived == {"wage2888-stored": {8}, "wage2888": {2}}
