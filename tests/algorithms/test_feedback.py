"""What is left out of a client's update is added to its next one."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bhfl.algorithms import AdaQuantFL, FedCOM, FedLQ, FedPAQ, ProWD
from bhfl.algorithms.fedlq import Budget
from bhfl.algorithms.feedback import largest
from bhfl.comm import decode, encode, float_tensors, header_bytes
from bhfl.engine.checkpoint import digest
from bhfl.quant import QuantizedTensor
from tests.federation import fake, fit, same

FLEET = {"ternary": 1, 32: 2}


def signs(candidates: tuple[int, ...], average: float) -> FedLQ:
    """FedLQ that may send signs."""
    return FedLQ("delta", candidates, Budget(average_bits=average), error_feedback=True)


METHODS: dict[str, Any] = {
    "FedPAQ": lambda: FedPAQ(2, error_feedback=True),
    "buckets": lambda: FedPAQ(3, "linf", 7, error_feedback=True),
    "top_k": lambda: FedCOM(4, 0.5, error_feedback=True, top_k=0.1),
    "AdaQuantFL": lambda: AdaQuantFL(error_feedback=True),
    "FedLQ": lambda: FedLQ("delta", candidates=(2, 8, 32), error_feedback=True),
    "FedLQ signs": lambda: signs((0, 1, 4), 1.5),
    "ProWD": lambda: ProWD(dequantizer=None, payload="delta", error_feedback=True),
}


def watched(algorithm: Any) -> tuple[Any, list[Any]]:
    """The algorithm, and a list that gets what each client wanted to send, sent and kept."""
    seen: list[Any] = []
    uplink = algorithm.uplink

    def watching(run: Any) -> Any:
        before = {name: value.clone() for name, value in run.state.items()}
        end = {name: value.clone() for name, value in run.module.state_dict().items()}
        update = uplink(run)
        # values are the module's own, which the next client changes
        sent = copy.deepcopy(update)
        seen.append((run.client, before, run.received, end, sent, dict(run.state)))
        return update

    algorithm.uplink = watching
    return algorithm, seen


@pytest.mark.parametrize("name", METHODS)
def test_what_is_sent_and_what_is_kept_make_up_the_update(tmp_path: Path, name: str) -> None:
    algorithm, seen = watched(METHODS[name]())
    # of a ternary client, FedLQ sends the codes and not what is behind them
    fleet = {32: 3} if "FedLQ" in name else FLEET
    fit(tmp_path, algorithm, fleet, data=fake(holdout=16), max_rounds=2)
    assert len(seen) == 6
    looked_at = 0
    for _, before, received, end, update, kept in seen:
        for key, residual in kept.items():
            tensor = key.removeprefix("error/")
            wanted = received[tensor] - end[tensor] + before.get(key, torch.zeros(()))
            if isinstance(update[tensor], QuantizedTensor):
                parts = float_tensors({k: v for k, v in update.items() if k.startswith(tensor)})
                sent = torch.cat([part.reshape(-1) for part in parts.values()]).view(wanted.shape)
            else:
                sent = received[tensor] - update[tensor]
            assert torch.allclose(sent + residual, wanted, atol=1e-6)
            looked_at += bool(before) and bool(residual.any())
    assert looked_at


@pytest.mark.parametrize("name", ["top_k", "FedLQ signs", "ProWD"])
def test_a_run_goes_on_with_what_was_left_out(tmp_path: Path, name: str) -> None:
    options = {"data": fake(holdout=16), "clients_per_round": 2, "sampling": "uniform"}
    whole = fit(tmp_path / "a", METHODS[name](), FLEET, **options)
    fit(tmp_path / "b", METHODS[name](), FLEET, **options, max_rounds=2)
    resumed = fit(tmp_path / "b", METHODS[name](), FLEET, **options, ckpt_path="last")
    assert same(whole.server.params, resumed.server.params)
    tables = [digest(run.session.store.table()) for run in (whole, resumed)]
    assert tables[0] == tables[1]


def test_prowd_leaves_nothing_out_while_a_client_has_the_most_bits(tmp_path: Path) -> None:
    best = {"weights": 8, "activations": 8, "granularity": "channel"}
    grow = {"bits": 4, "count": 1, "name": "grow", "schedule": {1: best, 2: 8}}
    algorithm, seen = watched(METHODS["ProWD"]())
    fit(tmp_path, algorithm, [grow, {"bits": best, "count": 1}], data=fake(holdout=16))
    errors = [any(error.any() for error in kept.values()) for *_, kept in seen[::2]]
    assert errors == [True, False, True]


@pytest.mark.parametrize("name", METHODS)
def test_a_client_that_has_lost_what_was_left_out_goes_on_without(name: str) -> None:
    assert METHODS[name]().client_half.begins_anew


class Unlucky(FedPAQ):
    """Its client 0 sends what is no number in the second round."""

    def uplink(self, run: Any) -> Any:
        update = dict(super().uplink(run))
        if (run.round, run.client.id) == (1, 0):
            update["net.0.bias"] = update["net.0.bias"] * torch.nan
        return update


@pytest.mark.filterwarnings("ignore:round 2")
def test_a_lost_update_leaves_what_was_left_out_as_it_was(tmp_path: Path) -> None:
    store = fit(tmp_path, Unlucky(2, error_feedback=True), {32: 2}, max_rounds=2).session.store
    assert [max(store.known[client]) for client in (0, 1)] == [1, 2]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_the_largest_entries_are_kept(share: float) -> None:
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(0))
    kept = largest(x, share)
    chosen = kept != 0
    assert int(chosen.sum()) == math.ceil(share * 85)
    assert torch.equal(kept[chosen], x[chosen])
    assert x[chosen].abs().min() >= x[~chosen].abs().max()
    assert largest(torch.zeros(0, 3), share).shape == (0, 3)


def test_a_whole_share_is_not_rounded_up() -> None:
    """0.07 of 100 is a little more than 7 in floats."""
    assert int(largest(torch.arange(1.0, 101), 0.07).count_nonzero()) == 7


def test_few_entries_take_few_bytes(tmp_path: Path) -> None:
    algorithm, seen = watched(FedPAQ(4, error_feedback=True, top_k=0.02))
    run = fit(tmp_path, algorithm, {32: 2}, max_rounds=1).run
    for *_, update, _ in seen:
        coded = {name: x for name, x in update.items() if isinstance(x, QuantizedTensor)}
        for name, value in coded.items():
            assert value.sparse
            assert int(value.codes.count_nonzero()) <= -(-value.codes.numel() // 50)
            assert torch.equal(decode(encode(coded))[name].codes, value.codes)
    dense = fit(tmp_path, FedPAQ(4), {32: 2}, max_rounds=1).run
    assert run.history[0]["uplink_bytes"] < dense.history[0]["uplink_bytes"] - 2 * 400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FedCOM(norm="l2", error_feedback=True),
            "FedCOM.error_feedback needs FedCOM.norm: linf, got l2: what is carried is rounded to",
        ),
        (lambda: FedPAQ(32, top_k=0.1), r"top_k needs codes .*bits must be 2\.\.16 .* got 32 and"),
        (lambda: FedCOM(8, bucket_size=9, top_k=0.1), "bucket_size null, got 8 and 9"),
        (lambda: FedPAQ(top_k=1.0), r"FedPAQ.top_k must be in \[0.0001, 1\), got 1.0"),
        (lambda: FedPAQ(error_feedback=1), "FedPAQ.error_feedback must be true or false, got 1"),
        (lambda: FedLQ(error_feedback=True), "FedLQ.error_feedback needs FedLQ.payload: delta"),
        (lambda: FedLQ(candidates=(0, 2)), r"FedLQ.error_feedback: true .*, got False and client"),
        (lambda: FedLQ(candidates=(1, 2)), r"with 1, .* needs .*: true and FedLQ.payload: delta"),
        (lambda: FedLQ("delta", (1, 2)), r"FedLQ.error_feedback: true and .*_feedback: false"),
        (lambda: ProWD(error_feedback=True), "ProWD.error_feedback needs ProWD.payload: delta"),
    ],
)
def test_options_that_contradict_each_other(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_fedlq_leaves_layers_for_a_later_round(tmp_path: Path) -> None:
    """At one bit a weight, which no width can offer, some layers wait, and none for ever."""
    budget = Budget(average_bits=1)
    lq = FedLQ("delta", candidates=(0, 2, 4), budget=budget, error_feedback=True)
    algorithm, seen = watched(lq)
    run = fit(tmp_path, algorithm, {32: 2}, data=fake(holdout=16), max_rounds=6).run
    sent: dict[str, int] = {}
    for *_, update, kept in seen:
        layers = {name: x for name, x in update.items() if isinstance(x, QuantizedTensor)}
        left_out = [name for name, x in layers.items() if x.sparse]
        assert 0 < len(left_out) < len(layers) == 3
        for name in layers.keys() - left_out:
            sent[name] = sent.get(name, 0) + 1
        assert all(bool(kept["error/" + name].any()) for name in left_out)
        codes = encode(layers)
        # headers aside, a scale for each layer, and what a sparse one has in its row
        most = 8 * (len(codes) - header_bytes(codes)) + 32 * len(left_out)
        assert most <= sum(8 * -(-x.codes.numel() // 8) + 32 for x in layers.values())
    assert len(sent) >= 2
    assert all(row["fedlq/bits"] <= 1 for row in run.history)


@pytest.mark.parametrize("plan", ["client", "server"])
def test_fedlq_sends_signs_of_all_layers(tmp_path: Path, plan: Any) -> None:
    """A bit a weight and a scale, eight weights a byte, and never more than planned."""
    lq = FedLQ("delta", (1,), Budget(average_bits=1), plan=plan, error_feedback=True)
    algorithm, seen = watched(lq)
    run = fit(tmp_path, algorithm, {"ternary": 1, 32: 1}, data=fake(holdout=16), max_rounds=2).run
    for *_, update, kept in seen:
        layers = {name: x for name, x in update.items() if isinstance(x, QuantizedTensor)}
        assert {x.bits for x in layers.values()} == {1}
        codes = encode(layers)
        sizes = [x.codes.numel() for x in layers.values()]
        assert len(codes) - header_bytes(codes) == sum(-(-size // 8) + 4 for size in sizes)
        assert all(bool(kept["error/" + name].any()) for name in layers)
    assert all(row["fedlq/bits"] == 1 for row in run.history)
