"""The inputs of a model, as its own step shows them."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from bhfl.engine.client.place import Place
from bhfl.engine.client.worker import Worker
from bhfl.engine.loan import Loan
from bhfl.engine.trainer import FederatedTrainer
from bhfl.export.example import example_of

X, Y = torch.randn(6, 5), torch.arange(6) % 3


class Module(L.LightningModule):
    """Its batches are given to `unpack`, which says what `forward` is called with."""

    def __init__(self, unpack, stage="test", part=False):
        super().__init__()
        self.net = nn.Linear(5, 3)
        self.unpack = unpack
        self.stage = stage
        self.part = part

    def forward(self, x, scale=1.0):
        return self.net(x) * scale

    def step(self, batch):
        args, kwargs = self.unpack(batch)
        (self.net if self.part else self)(*args, **kwargs)
        raise RuntimeError("of a metric")

    def training_step(self, batch, batch_idx): ...

    def test_step(self, batch, batch_idx):
        return self.step(batch) if self.stage == "test" else None

    def validation_step(self, batch, batch_idx):
        return self.step(batch)


class Data:
    """One batch, of the test split or the validation split."""

    def __init__(self, test=(), val=()):
        self.test, self.val = list(test), list(val)

    def test_batches(self):
        return self.test

    def val_batches(self):
        return self.val


def example(module, data):
    trainer = FederatedTrainer(clients={32: 1}, logger=False, devices=1)
    place = Place(data, trainer.settings, "test")
    Loan(module, data).attach(place, trainer.fabric)
    return example_of(Worker(module, trainer.fabric, place), data)


@pytest.mark.parametrize(
    ("batch", "unpack"),
    [
        ([X, Y], lambda b: ((b[0],), {})),
        ([Y, X], lambda b: ((b[1],), {})),
        ([Y.float(), X], lambda b: ((b[1],), {})),
        ({"label": Y, "x": X}, lambda b: ((), {"x": b["x"]})),
        ((Y, {"nested": [X]}), lambda b: ((b[1]["nested"][0],), {})),
        (X, lambda b: ((b,), {})),
    ],
)
@pytest.mark.parametrize("stage", ["test", "val"])
@pytest.mark.parametrize("part", [False, True])
def test_batches_of_any_form(batch, unpack, stage, part):
    if part and isinstance(batch, dict):
        pytest.skip("a layer is called by position")
    (found,) = example(Module(unpack, stage, part), Data([batch], [batch]))
    assert torch.equal(found, X[:2])


def test_further_arguments_are_kept():
    found = example(Module(lambda b: ((b[0],), {"scale": torch.tensor(2.0)})), Data(val=[[X, Y]]))
    assert torch.equal(found[0], X[:2])
    assert found[1].item() == 2


class Optional(Module):
    def forward(self, x, bias=None, scale=1.0, *, power=1):
        y = self.net(x) if bias is None else self.net(x) + bias
        return y * scale**power


def test_what_was_left_out_before_an_argument_has_its_default():
    module = Optional(lambda b: ((b[0],), {"scale": torch.tensor(2.0)}))
    x, bias, scale = example(module, Data([[X, Y]]))
    assert (len(x), bias, scale.item()) == (2, None, 2)


def test_an_argument_that_no_file_can_take_is_told():
    module = Optional(lambda b: ((b[0],), {"power": 2}))
    with pytest.raises(
        ValueError,
        match=r"forward of Optional must take by position .*, and takes power by keyword",
    ):
        example(module, Data([[X, Y]]))


def test_the_model_s_own_example_goes_first():
    module = Module(None)
    module.example_input_array = X[:1]
    assert [tensor.shape for tensor in example(module, Data())] == [(1, 5)]
    module.example_input_array = {"scale": 2.0, "x": X[:1]}
    assert example(module, Data())[1] == 2.0


@pytest.mark.parametrize(
    ("module", "data", "problem"),
    [
        (Module(None), Data(), "there is neither a test batch nor a validation batch"),
        (Module(None), Data([[X, Y]]), "the step that shows its inputs failed: TypeError"),
    ],
)
def test_where_nothing_shows_the_inputs(module, data, problem):
    with pytest.raises(ValueError, match=problem):
        example(module, data)


def test_a_step_that_calls_no_layer():
    class Idle(Module):
        def step(self, batch): ...

    with pytest.raises(
        ValueError, match="neither test_step nor validation_step of Idle calls any layer"
    ):
        example(Idle(None), Data([[X, Y]]))
