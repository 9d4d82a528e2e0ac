"""What is told before the first round: low-bit groups that stay float32, BatchNorm that hardly
moves.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from bhfl.engine.forewarn import forewarn
from bhfl.engine.trainer import FederatedTrainer
from bhfl.engine.types import Client as Member
from bhfl.quant import BitSpec, quantize_
from tests.federation import Client, fake, fit


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 32)
        self.head = nn.Linear(32, 4)


class Own(nn.Module):
    """As the Conv1D of GPT-2: a linear layer of nobody's class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(40, 8)), nn.Parameter(torch.zeros(40))


def told(model, *bits, batches=10, fresh=True, compiled=False, **options):
    data = fake(8 * batches, val_fraction=0.0)
    data.federate(1, 0)
    quantize_(model, BitSpec())
    if compiled:
        model.compile()
    fleet = [Member(i, BitSpec.parse(b), 8 * batches) for i, b in enumerate(bits)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        forewarn(
            model,
            fleet,
            Batches(batches),
            FederatedTrainer({32: 1}, devices=1, logger=False, **options).settings,
            fresh=fresh,
        )
    return [str(warning.message) for warning in caught]


class Batches:
    def __init__(self, count):
        self.count = count

    def num_batches(self, client_id):
        return self.count


def test_a_group_that_stays_float32_is_told_once_with_share_and_names():
    told_of = told(Sequence(), 4, 4, "ternary", 32)
    assert len(told_of) == 2
    assert told_of[0].startswith("int4 clients hold 4% of the model's weights at their bits")
    assert "lstm (LSTM), head (Linear)" in told_of[0]  # of the head, its bias
    assert told_of[1].startswith("ternary clients hold 4%")


def test_layers_of_unknown_classes_are_named():
    (line,) = told(nn.Sequential(Own(), nn.Linear(4, 4)), 8)
    assert "0 (Own)" in line
    assert "\n" not in line


@pytest.mark.parametrize("bits", [[32], [{"weights": 32, "activations": 8}]])
def test_nothing_is_told_of_groups_of_float_weights(bits):
    assert told(Sequence(), *bits) == []


def test_nothing_is_told_of_models_that_are_quantised():
    assert (
        told(nn.Sequential(nn.Linear(40, 8), nn.LayerNorm(8), nn.Embedding(9, 4)), 8, "ternary")
        == []
    )
    attention = nn.TransformerEncoderLayer(16, 2, 32)
    assert told(attention, 4) == []


@pytest.mark.parametrize(
    ("momentum", "batches", "options", "is_told"),
    [
        (0.01, 10, {}, True),
        (0.01, 100, {}, False),
        (0.01, 10, {"local_epochs": 10}, False),
        (0.01, 100, {"local_steps": 5}, True),
        (0.01, 10, {"reestimate_norm": True}, False),
        (0.1, 10, {}, False),
        (0.1, 3, {}, True),
        (None, 1, {}, False),
        (0.0, 1000, {}, True),
    ],
)
def test_norms_that_hardly_move_in_a_round_are_told_of(momentum, batches, options, is_told):
    found = told(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=momentum)),
        32,
        batches=batches,
        **options,
    )
    assert bool(found) == is_told
    if is_told:
        assert found[0].startswith(f"BatchNorm 1 has momentum {momentum:g}: after the")
        assert "trainer.reestimate_norm: true and data.holdout" in found[0]


def test_a_resumed_run_has_the_statistics_of_its_clients():
    slow = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.01))
    assert told(slow, 32)
    assert not told(slow, 32, fresh=False)


def test_the_momentum_that_the_message_gives_is_enough():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.01))
    (line,) = told(model, 32)
    model[1].momentum = float(line.partition("momentum of ")[2].split()[0])
    assert told(model, 32) == []


def test_frozen_norms_and_norms_without_statistics_are_not_told_of():
    frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.01).eval())
    assert told(frozen, 32) == []
    assert (
        told(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, 0.01, track_running_stats=False)), 32)
        == []
    )


def test_a_fit_tells_before_its_first_round(tmp_path):
    class Mostly(Client):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 64)

    with pytest.warns(UserWarning, match=r"int8 clients hold .*lstm \(LSTM\)"):
        fit(tmp_path, module=Mostly, max_rounds=1)


def test_more_bit_widths_than_the_compiler_has_graphs_for_are_told():
    (told_of,) = told(nn.Linear(4, 4), 2, 3, 4, 4, 8, 32, compiled=True)
    assert told_of.startswith("the model is compiled anew for each of 5 bit-widths, up to 20 times")
    assert told_of.endswith("set torch._dynamo.config.recompile_limit = 20 before the run")
    assert not told(nn.Linear(4, 4), 8, 32, compiled=True)
    assert not told(nn.Linear(4, 4), 2, 3, 4, 8, 32)


@pytest.mark.slow
def test_the_limit_of_the_compiler_that_is_told_is_enough(tmp_path):
    class Compilable(Client):
        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def uncompiled():
        """How many forwards the compiler gave up."""
        torch._dynamo.reset()
        counters.clear()
        model = torch.compile(Compilable(), backend="eager")
        fit(
            tmp_path,
            clients=dict.fromkeys((2, 3, 4, 6, 8), 1),
            module=lambda: model,
            data=fake(60),
            max_rounds=2,
        )
        return counters["frames"]["total"] - counters["frames"]["ok"]

    with pytest.warns(
        UserWarning, match=r"anew for each of 6 bit-widths.*recompile_limit = 24 before the run"
    ):
        assert uncompiled()
    with torch._dynamo.config.patch(recompile_limit=24), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*recompile_limit")
        assert not uncompiled()
    torch._dynamo.reset()
