"""channels_last: taken where a copy of the model shows that it fits, decided once, recorded, and
given back.
"""

from __future__ import annotations

import json
import random
import threading
import warnings
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import TensorDataset

from bhfl.data import FromDatasets
from bhfl.engine import FederatedTrainer, TooFewClientsError, formats
from bhfl.engine.client.layout import Layout
from bhfl.engine.formats import agree_on_format
from bhfl.quant.memory_format import has_usual_strides
from tests import federation
from tests.federation import Client, fake, same

FABRIC = Fabric(accelerator="cpu", devices=1)

fit = partial(federation.fit, channels_last="auto")


def batch():
    return [torch.randn(6, 3, 8, 8), torch.arange(6) % 4]


class Net(L.LightningModule):
    """A convolution, something between, and a linear layer."""

    def __init__(self, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.LazyLinear(4)
        self.flat(self.conv(torch.zeros(2, 3, 8, 8)))
        self.out(self.flat(self.conv(torch.zeros(2, 3, 8, 8))))

    def flat(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.out(self.flat(self.conv(x)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class NothingThere(Net):
    """It computes what is not a number from images in channels_last."""

    def forward(self, x):
        return super().forward(x) * (1 if x.is_contiguous() else float("nan"))


class NothingAnywhere(Net):
    """It computes what is not a number from any images."""

    def forward(self, x):
        return super().forward(x) * float("nan")


class View(Net):
    def flat(self, x):
        return x.view(len(x), -1)


class ViewOfInput(Net):
    def forward(self, x):
        return super().forward(x.view(len(x), -1).view(-1, 3, 8, 8))


class Asserts(Net):
    def forward(self, x):
        assert x.is_contiguous()
        return super().forward(x)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g.view(-1).view(g.shape)


class Backward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.out(self.last(_Backward.apply(self.conv(x))).flatten(1))


class Strided(Net):
    def flat(self, x):
        if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
            return x.flatten(1)
        return torch.as_strided(x, (len(x), x[0].numel()), (x[0].numel(), 1))


class ByLBFGS(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1)


class OfItsWeight(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.conv.weight.view(4, -1).norm()


class Manual(View):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.untoggle_optimizer(optimizer)


class InValidation(Net):
    def validation_step(self, batch, batch_idx):
        return self.conv(batch[0]).view(len(batch[0]), -1).mean()


class Functional(Net):
    def flat(self, x):
        return F.conv2d(
            x, self.conv.weight[:, :, :1, :1].mean(1, keepdim=True).expand(4, 4, 1, 1), stride=2
        ).flatten(1)


class DropsOut(Net):
    def flat(self, x):
        return F.dropout(x, 0.5, self.training).flatten(1)


class Dicts(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["a"][0] + batch["a"][1]), batch["y"])


class ManualThatFits(Manual):
    def flat(self, x):
        return x.flatten(1)


class ChangesItsBatch(Net):
    def training_step(self, batch, batch_idx):
        batch[0].mul_(0).add_(1)
        return super().training_step(batch, batch_idx)


class Broken(Net):
    def training_step(self, batch, batch_idx):
        raise KeyError("mine")


class NotCopied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Grouped(Net):
    """Convolutions that crash in channels_last, one of a class of its own."""

    def __init__(self) -> None:
        own = type("Own", (nn.Conv2d,), {})
        super().__init__(
            nn.Sequential(nn.Conv2d(3, 5, 1, stride=2), nn.ReLU(), own(5, 4, 1, stride=2))
        )


def agreed(wanted, module, given=batch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = agree_on_format(wanted, module, FABRIC, given)
    return chosen, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "kind", [Net, DropsOut, NothingAnywhere, ManualThatFits, ChangesItsBatch, Grouped]
)
def test_models_that_fit_are_taken_without_a_word(kind):
    assert agreed("auto", kind()) == (True, [])


MISFITS = [
    View,
    ViewOfInput,
    Asserts,
    Strided,
    ByLBFGS,
    OfItsWeight,
    Manual,
    InValidation,
    NothingThere,
    Functional,
    Backward,
]


@pytest.mark.parametrize("kind", MISFITS)
def test_models_that_do_not_fit_stay_contiguous_with_one_line(kind):
    chosen, told = agreed("auto", kind())
    assert not chosen
    assert len(told) == 1
    assert told[0].startswith(
        "trainer.channels_last: auto takes contiguous images, which can be slower: "
    )
    assert "\n" not in told[0]
    if kind in (Strided, NothingThere):
        return  # wanted is taken: it raises nothing
    with pytest.raises(
        ValueError,
        match=r"trainer\.channels_last: true does not fit.*set trainer\.channels_last to auto",
    ):
        agreed(True, kind())
    assert agreed(False, kind()) == (False, [])


def test_batches_of_dicts_are_tried_as_they_are():
    def dicts():
        return {"a": (torch.randn(6, 3, 8, 8), torch.randn(6, 3, 8, 8)), "y": torch.arange(6) % 4}

    assert agreed("auto", Dicts(), dicts) == (True, [])


def test_an_error_in_both_formats_is_not_the_formats():
    assert agreed("auto", Broken()) == (False, [])
    assert agreed(True, Broken()) == (True, [])


def test_without_a_weight_of_four_dimensions_nothing_is_tried():
    module = Client(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    assert agreed("auto", module, lambda: pytest.fail("no batch is needed")) == (False, [])


def test_a_model_that_cannot_be_copied_stays_contiguous():
    chosen, (told,) = agreed("auto", NotCopied())
    assert not chosen
    assert "NotCopied cannot be tried (TypeError" in told


def test_the_trial_touches_no_weight_no_buffer_and_no_random_stream():
    module = Net(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    given = batch()
    kept = [tensor.clone() for tensor in given]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert agreed("auto", module, lambda: given) == (True, [])
    assert same(module.state_dict(), before)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    assert [layer.training for layer in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[1:]


def test_convolutions_that_crash_stay_contiguous_and_the_module_comes_back():
    module = Grouped()
    module.conv[0].weight.data = module.conv[0].weight.data.clone(memory_format=torch.channels_last)
    seen = []
    layout = Layout(module)
    layout.take_(True)
    for layer in (module.conv[0], module.conv[2]):
        layer.register_forward_pre_hook(lambda layer, x: seen.append((x[0], layer.weight)))
    images = layout.batch(batch())[0]
    assert not has_usual_strides(images)
    assert not has_usual_strides(layout.batch({"image": batch()[0]})["image"])
    module(images)
    assert all(has_usual_strides(tensor) for pair in seen for tensor in pair)
    layout.take_(False)
    assert len(module.conv[2]._forward_pre_hooks) == 1
    assert has_usual_strides(layout.batch(batch())[0])


# ---- whole runs ----------------------------------------------------------------------------------


def of_images(**options):
    torch.manual_seed(0)
    train = TensorDataset(torch.randn(40, 3, 8, 8), torch.arange(40) % 4)
    return FromDatasets(train=train, test=train, batch_size=8, **options)


class Measured(View):
    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def test_a_model_with_views_trains_and_is_measured_by_default(tmp_path):
    with pytest.warns(UserWarning, match="auto takes contiguous images.*view size"):
        trainer = fit(tmp_path, module=Measured, data=of_images(), max_rounds=1)
    assert trainer.server.channels_last is False
    with pytest.raises(ValueError, match="channels_last: true does not fit Measured"):
        fit(tmp_path / "wanted", module=Measured, data=of_images(), channels_last=True)
    assert not (tmp_path / "wanted").exists()


def test_what_was_decided_holds_for_resumed_runs_and_tests(tmp_path, monkeypatch):
    whole = fit(tmp_path / "whole", max_rounds=2)
    part = fit(tmp_path / "part", max_rounds=1)
    assert part.server.channels_last is True
    monkeypatch.setattr(formats, "agree_on_format", lambda *_: pytest.fail("decided twice"))
    resumed = fit(tmp_path / "part", max_rounds=2, ckpt_path="last")
    assert resumed.server.channels_last is True
    assert same(resumed.server.params, whole.server.params)
    tester = FederatedTrainer(
        {8: 2, 32: 2}, logger=False, default_root_dir=str(tmp_path / "part"), devices=1
    )
    tester.test(Client(), fake(), ckpt_path="last")
    assert json.loads((resumed.run.folder / "env.json").read_text())["channels_last"] is True
    assert tester.server.channels_last is True


def test_the_module_comes_back_contiguous_and_without_hooks(tmp_path):
    module = Grouped()
    trainer = FederatedTrainer(
        {8: 1}, max_rounds=1, logger=False, default_root_dir=str(tmp_path), devices=1
    )
    trainer.fit(module, of_images())
    assert trainer.server.channels_last is True
    assert not any(layer._forward_pre_hooks for layer in module.modules())
    assert all(p.is_contiguous() for p in module.parameters())


class ViewsLater(Measured):
    """What a trial of one batch does not meet: it depends on the data."""

    def flat(self, x):
        return x.view(len(x), -1) if self.training and len(x) < 8 else x.flatten(1)


def test_views_that_the_trial_did_not_meet_name_the_option(tmp_path):
    data = of_images(max_train_samples=39)  # two clients with batches of 8, 8, and 2 or 1
    options = {"clients": {8: 2}, "module": ViewsLater, "max_rounds": 1}
    with pytest.raises(TooFewClientsError, match=r"view size.*set trainer\.channels_last: false"):
        fit(tmp_path, data=data, **options)
    fit(tmp_path / "off", data=data, channels_last=False, **options)


# ---- BatchNorm on one sample ---------------------------------------------------------------------


class Normed(Measured):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)))

    def forward(self, x):
        return self.out(self.conv(x).flatten(1))


def test_a_last_batch_of_one_names_drop_last_which_helps(tmp_path):
    with pytest.raises(
        TooFewClientsError, match=r"Expected more than 1 value.*data\.drop_last: true"
    ):
        fit(
            tmp_path,
            clients={8: 2},
            module=Normed,
            data=of_images(max_train_samples=38),
            max_rounds=1,
        )
    data = of_images(max_train_samples=38, drop_last=True)
    trainer = fit(tmp_path / "dropped", clients={8: 2}, module=Normed, data=data, max_rounds=1)
    assert trainer.run.history[0]["clients/ok"] == 2
