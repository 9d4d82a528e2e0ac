"""A user's LightningModule is a client as it is, and leaves nothing behind for the next one."""

from __future__ import annotations

import random
import warnings
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from bhfl.engine.callback import Callback
from bhfl.engine.random import RandomKeys
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import CLASSES, FEATURES, HandMade, Module, float_state, points
from tests.federation import Client, Net, fake, fit, same

pytestmark = pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)")


def train(folder, module: L.LightningModule, clients: Any = None, **options) -> FederatedTrainer:
    """A run of `module`; by default one round of one float32 client of 10 samples in batches of
    4.
    """
    data = options.pop("data", None) or HandMade(
        [points(10)] * (sum(clients.values()) if clients else 1)
    )
    options = {
        "max_rounds": 1,
        "max_failed_rounds": 0,
        "monitor": "train/loss",
        "mode": "min",
        **options,
    }
    return fit(folder, clients=clients or {32: 1}, module=lambda: module, data=data, **options)


# ---- what is logged ------------------------------------------------------------------------------


class Chatty(Module):
    """Logs in every way, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        self.seen: list[Any] = []

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.seen.append((loss.item(), len(batch[1]), (logits.argmax(1) == batch[1]).sum().item()))
        self.log("train_accuracy", self.accuracy, prog_bar=True, on_epoch=True)
        self.log_dict({"train/size": float(len(batch[1])), "twice": 2 * loss}, sync_dist=True)
        self.log("largest", loss, reduce_fx="max")
        return {"loss": loss, "logits": logits}


def test_values_logged_in_training(tmp_path):
    module = Chatty()
    row = train(tmp_path, module, local_epochs=2).run.history[0]
    sizes = [size for _, size, _ in module.seen]
    mean = sum(loss * size for loss, size, _ in module.seen) / sum(sizes)
    assert sizes == [4, 4, 2] * 2
    assert row["train/loss"] == pytest.approx(mean, rel=1e-12)
    assert row["train/twice"] == pytest.approx(2 * mean, rel=1e-7)
    assert row["train/size"] == 3.6
    assert row["train/largest"] == max(loss for loss, _, _ in module.seen)
    assert row["train/accuracy"] == pytest.approx(
        sum(right for *_, right in module.seen) / sum(sizes)
    )


def test_a_failing_client_leaves_no_metric_behind(tmp_path):
    class Failing(Chatty):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if len(self.seen) == 2:
                raise RuntimeError("no")
            return output

    module = Failing()
    row = train(
        tmp_path, module, {32: 2}, data=HandMade([points(10), points(8, seed=5)])
    ).run.history[0]
    assert row["clients/failed"] == 1
    assert row["train/accuracy"] == sum(right for *_, right in module.seen[2:]) / 8


def test_a_loss_that_the_module_logs_itself_is_the_one_shown(tmp_path):
    class Regularised(Module):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", 0.25)
            return super().training_step(batch, batch_idx) + 1

    assert train(tmp_path, Regularised()).run.history[0]["train/loss"] == 0.25


class Validated(Module):
    """Validates by torchmetrics, by a collection of them, by return value and by its own
    bookkeeping.
    """

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
        kinds = {"f1": torchmetrics.F1Score("multiclass", num_classes=CLASSES, average="macro")}
        kinds["recall"] = torchmetrics.Recall("multiclass", num_classes=CLASSES, average="macro")
        self.several = torchmetrics.MetricCollection(kinds, prefix="val_")
        self.mine = torchmetrics.MeanMetric()
        self.outputs: list[Any] = []

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.several.update(logits, batch[1])
        self.mine.update(logits.mean())
        self.log("val_acc", self.accuracy)
        self.log_dict(self.several)
        self.outputs.append((logits, batch[1]))
        return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits}

    def on_validation_epoch_end(self):
        logits, labels = (torch.cat(parts) for parts in zip(*self.outputs, strict=True))
        self.outputs.clear()
        self.log("val/worst", F.cross_entropy(logits, labels, reduction="none").max())
        self.log("mine", self.mine.compute())
        self.mine.reset()


class TwoBatches(HandMade):
    """Validates in batches of unequal size."""

    def val_batches(self):
        inputs, labels = self.held_out
        return [(inputs[:7], labels[:7]), (inputs[7:], labels[7:])]


def test_values_logged_in_validation(tmp_path):
    data = TwoBatches([points(10)], held_out=points(9, seed=3))
    module = Validated()
    row = train(tmp_path, module, data=data).run.history[0]
    inputs, labels = data.held_out
    with torch.no_grad():
        logits = module.net(inputs)
    right = (logits.argmax(1) == labels).float()
    assert row["val/acc"] == pytest.approx(right.mean().item())
    assert row["val/recall"] == pytest.approx(
        np.mean([right[labels == c].mean().item() for c in labels.unique()])
    )
    assert 0 < row["val/f1"] <= 1
    assert row["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert row["val/worst"] == pytest.approx(
        F.cross_entropy(logits, labels, reduction="none").max().item()
    )
    assert row["val/mine"] == pytest.approx(
        (logits[:7].mean().item() + logits[7:].mean().item()) / 2, rel=1e-5
    )


def test_no_validation_data_means_no_validation(tmp_path):
    # its on_validation_epoch_end cannot do without any
    row = train(tmp_path, Validated()).run.history[0]
    assert not [tag for tag in row if tag.startswith("val/")]


def test_metrics_are_the_same_for_every_client_of_a_collection(tmp_path):
    data = TwoBatches([points(10)] * 2, held_out=points(9, seed=3))
    with warnings.catch_warnings():
        # torchmetrics warns of metrics that are computed before they are updated
        warnings.simplefilter("error")
        row = train(tmp_path, Validated(), {16: 1, 32: 1}, data=data).run.history[0]
    assert row["val/f1_int16"] == pytest.approx(row["val/f1_float32"], abs=0.2)
    assert row["val/f1_avg"] == (row["val/f1_int16"] + row["val/f1_float32"]) / 2
    assert row["val/f1_min"] == min(row["val/f1_int16"], row["val/f1_float32"])


# ---- hooks ---------------------------------------------------------------------------------------


class Hooked(Module):
    """Writes down which hooks are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") or name in (
            "training_step",
            "validation_step",
            "configure_model",
        ):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_hooks_are_called_in_the_order_of_lightning(tmp_path):
    module = Hooked()
    train(tmp_path, module, data=HandMade([points(8)], held_out=points(4)))
    transfer = ["on_before_batch_transfer", "on_after_batch_transfer"]
    batch = [
        *transfer, "on_train_batch_start", "training_step", "on_before_zero_grad",
        "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end",
    ]  # fmt: skip
    validation = [
        "on_validation_model_eval", "on_validation_start", "on_validation_epoch_start", *transfer,
        "on_validation_batch_start", "validation_step", "on_validation_batch_end",
        "on_validation_epoch_end", "on_validation_end",
    ]  # fmt: skip
    training = [
        "on_train_start",
        "on_train_epoch_start",
        *batch,
        *batch,
        "on_train_epoch_end",
        "on_train_end",
    ]
    # looked up, and not overridden
    called = [name for name in module.calls if not name.endswith("_model_train")]
    called = [
        name for name, before in zip(called, ["", *called], strict=False) if name != before
    ]  # looked at, then called
    expected = ["configure_model", "on_fit_start", *training, *validation, "on_fit_end"]
    assert called[called.index("configure_model") :][: len(expected)] == expected


def test_batches_pass_through_the_transfer_hooks(tmp_path):
    class Halved(Module):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] / 2, batch[1]

        def training_step(self, batch, batch_idx):
            self.received = batch[0]
            return super().training_step(batch, batch_idx)

    module = Halved()
    train(tmp_path, module, data=HandMade([points(4)]))
    assert torch.equal(module.received, points(4)[0] / 2)


def test_hooks_that_are_not_called_are_named(tmp_path):
    class Kept(Module):
        def on_save_checkpoint(self, checkpoint): ...

        def configure_callbacks(self):
            return []

        def predict_dataloader(self): ...

        def validation_epoch_end(self, outputs): ...

        def setup(self, stage): ...

    with pytest.warns(
        UserWarning,
        match=(
            "Kept overrides configure_callbacks, on_save_checkpoint, predict_dataloader, "
            "validation_epoch_end, which federated clients do not call"
        ),
    ):
        train(tmp_path, Kept())


def test_hooks_of_the_data_that_are_not_called_are_named(tmp_path):
    class Kept(HandMade):
        def train_dataloader(self): ...

        def state_dict(self): ...

    with pytest.warns(UserWarning, match="Kept overrides train_dataloader, state_dict, which fed"):
        train(tmp_path, Module(), data=Kept([points(4)]))


def test_layers_made_in_configure_model(tmp_path):
    class Late(Module):
        def __init__(self):
            super().__init__()
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = nn.Linear(FEATURES, CLASSES)

    assert train(tmp_path, Late(), {8: 1}).server.params.keys() == {"net.weight", "net.bias"}


def test_steps_without_a_loss_are_no_steps(tmp_path):
    class Skipping(Module):
        def training_step(self, batch, batch_idx):
            return None if batch_idx else super().training_step(batch, batch_idx)

    module = Skipping()
    train(tmp_path, module)
    assert len(module.rates) == 1


def test_a_dict_without_loss(tmp_path):
    class Lossless(Module):
        def training_step(self, batch, batch_idx):
            return {"lss": 1}

    with pytest.raises(
        RuntimeError, match="training_step returned a dict without 'loss', with 'lss'"
    ):
        train(tmp_path, Lossless())


# ---- randomness ----------------------------------------------------------------------------------


class Noisy(Module):
    """Draws from every global generator there is."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, 7), nn.Dropout(0.5), nn.Linear(7, CLASSES))
        )
        self.draws: list[Any] = []

    def training_step(self, batch, batch_idx):
        self.draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
        return super().training_step((batch[0] * np.random.beta(1, 1), batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val/draw", torch.rand(1).item() + np.random.rand() + random.random())
        self.log("val/acc", 0.0)


def test_draws_are_keyed_by_client_and_round_and_by_nothing_else(tmp_path):
    data = HandMade([points(12, seed) for seed in range(2)], held_out=points(3))
    runs = []
    for i in range(2):
        module = Noisy()
        module.load_state_dict(runs[0][1]) if runs else None
        start = float_state(module)
        torch.rand(i), np.random.rand(i), [random.random() for _ in range(i)]
        trainer = train(tmp_path / str(i), module, {32: 2}, data=data, max_rounds=2)
        runs.append((module.draws, start, trainer.server.params, trainer.run.history))
    assert same(runs[0][2], runs[1][2])
    assert runs[0][0] == runs[1][0]
    assert len(set(runs[0][0])) == 12  # three batches, two clients, two rounds
    assert [row["val/draw"] for row in runs[0][3]] == [row["val/draw"] for row in runs[1][3]]


def test_a_client_draws_the_same_whoever_was_before_it(tmp_path):
    clients = [points(12, seed) for seed in range(2)]
    with_other, alone = Noisy(), Noisy()
    train(tmp_path / "a", with_other, {32: 2}, data=HandMade(clients))
    train(
        tmp_path / "b",
        alone,
        {32: 2},
        data=HandMade([(clients[0][0][:0], clients[0][1][:0]), clients[1]]),
    )
    assert with_other.draws[3:] == alone.draws


def test_global_generators_are_left_as_they_were(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    torch.manual_seed(0)  # as tests.federation.fit does
    state = torch.get_rng_state()
    train(tmp_path, Noisy(), data=HandMade([points(12)], held_out=points(3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    torch.set_rng_state(before[0])


# ---- kinds of parameters and buffers -------------------------------------------------------------


def test_batch_norm_trains_as_it_does_alone(tmp_path):
    torch.manual_seed(0)
    module, reference = Client(Net(batch_norm=True)), Client(Net(batch_norm=True))
    reference.load_state_dict(module.state_dict())
    data = fake(40, val_fraction=0.0)
    trainer = train(
        tmp_path, module, data=data, channels_last=False, threads=torch.get_num_threads()
    )
    optimizer = reference.configure_optimizers()
    for batch in data.client_batches(0, RandomKeys(0, 0, 0), 0):
        optimizer.zero_grad()
        reference.training_step(batch, 0).backward()
        optimizer.step()
    assert same(float_state(module), float_state(reference))
    assert trainer.server.buffers["counters"] == {"net.1.num_batches_tracked": torch.tensor(5)}
    statistics = trainer.server.buffers["statistics"]["float32"]
    assert torch.equal(statistics["net.1.running_var"], reference.net[1].running_var)


class Tied(L.LightningModule):
    """A little language model: token embedding and output layer are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("index", torch.arange(5, dtype=torch.int16).view(1, 5))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.body(self.embedding(batch[0]))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


@pytest.mark.parametrize("bits", [32, 8, "ternary"])
def test_tied_weights_embeddings_and_integer_buffers(tmp_path, bits):
    tokens = torch.randint(11, (12,), generator=torch.Generator().manual_seed(0))
    module = Tied()
    start = float_state(module)
    trainer = train(tmp_path, module, {bits: 2}, data=HandMade([(tokens, tokens.roll(1))] * 2))
    assert module.head.weight is module.embedding.weight
    assert trainer.server.params.keys() == {"embedding.weight", "body.weight", "body.bias"}
    assert torch.equal(module.mask, start["mask"])
    assert torch.equal(module.index, start["index"])
    assert module.mask.dtype == torch.bool
    assert not torch.equal(module.embedding.weight, start["embedding.weight"])
    numel = 66 + 36 + 6
    content = (
        trainer.run.ledger.total("downlink_bytes") / 2
        - trainer.run.ledger.total("header_bytes") / 4
    )
    # headers of a quantised uplink are of another length
    assert content == pytest.approx(4 * numel + 3 + 10, abs=8)


def test_frozen_parameters_stay(tmp_path):
    module = Module()
    module.net[0].weight.requires_grad_(False)
    start = float_state(module)
    train(tmp_path, module, {32: 2})
    assert torch.equal(module.net[0].weight, start["net.0.weight"])
    assert not module.net[0].weight.requires_grad
    assert not torch.equal(module.net[2].weight, start["net.2.weight"])


def test_buffers_that_are_never_saved_begin_anew_with_every_client(tmp_path):
    class Counting(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(()), persistent=False)
            self.found = []

        def on_train_batch_start(self, batch, batch_idx):
            self.found.append(self.steps.item())
            self.steps += 1

    module = Counting()
    train(tmp_path, module, {32: 2}, max_rounds=2)
    assert module.found == [0, 1, 2] * 4


def test_buffers_that_are_never_saved_may_change_their_shape(tmp_path):
    class Caching(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.zeros(1), persistent=False)
            self.found = []

        def on_train_batch_start(self, batch, batch_idx):
            self.found.append(len(self.mask))
            self.register_buffer("mask", torch.zeros(len(self.mask) + 1), persistent=False)

    module = Caching()
    train(tmp_path, module, {32: 2}, max_rounds=1)
    assert module.found == [1, 2, 3] * 2
    assert torch.equal(module.mask, torch.zeros(1))


@pytest.mark.parametrize("state", [{"note": 1}, torch.ones(1)])
def test_a_state_that_nobody_would_set_is_refused(tmp_path, state):
    class Noted(Module):
        def get_extra_state(self):
            return state

        def set_extra_state(self, state): ...

    with pytest.raises(
        ValueError,
        match="state_dict must hold parameters and buffers only, got others: _extra_state",
    ):
        train(tmp_path, Noted())


def test_weights_that_the_state_leaves_out_are_refused(tmp_path):
    class Slim(Module):
        def state_dict(self, *args, **kwargs):
            whole = super().state_dict(*args, **kwargs)
            return {name: value for name, value in whole.items() if not name.startswith("net.0")}

    message = "must hold all that is trained, and lacks: net.0.weight, net.0.bias; freeze it, or"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, Slim())
    frozen = Slim()
    frozen.net[0].requires_grad_(False)
    train(tmp_path, frozen)


def test_doubles_are_refused(tmp_path):
    module = Module()
    module.net[0].double()
    with pytest.raises(
        ValueError, match=r"must be float32, got: net\.0\.weight is torch\.float64, net\.0\.bias is"
    ):
        train(tmp_path, module)


class Unquantisable(Module):
    """Has no layer that could be quantised."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.LayerNorm(FEATURES), nn.Flatten()))
        self.matrix = nn.Parameter(torch.ones(FEATURES, CLASSES))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]) @ self.matrix, batch[1])


def test_a_network_without_layers_to_quantise(tmp_path):
    trainer = train(tmp_path, Unquantisable(), {32: 2})
    assert trainer.run.history[0]["clients/ok"] == 2
    with pytest.raises(ValueError, match=r"nothing to quantise to 'int8' in Unquantisable"):
        train(tmp_path, Unquantisable(), {8: 2})


# ---- precision, memory format, clipping ----------------------------------------------------------


class Watched(Client):
    """Takes down the dtype that its first layer computes in."""

    def __init__(self) -> None:
        super().__init__(Net())
        self.dtypes: set[Any] = set()
        self.net[0].register_forward_hook(lambda *_: self.dtypes.add((self.training, _[2].dtype)))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)]
)
@pytest.mark.parametrize("bits", [32, 8])
def test_the_precision_asked_for_is_the_one_that_ran(tmp_path, precision, dtype, bits):
    module = Watched()
    trainer = train(tmp_path, module, {bits: 1}, data=fake(16), precision=precision)
    assert module.dtypes == {(True, dtype), (False, dtype)}
    assert all(tensor.dtype == torch.float32 for tensor in trainer.server.params.values())


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last(tmp_path, channels_last):
    class Strides(Module):
        def __init__(self):
            super().__init__(
                nn.Sequential(nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 4, (1, 3)), nn.Flatten())
            )

        def training_step(self, batch, batch_idx):
            assert (
                self.net[1].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
            )
            assert batch[2].is_contiguous(memory_format=torch.channels_last) == channels_last
            return super().training_step(batch, batch_idx)

    class WithImages(HandMade):
        def client_batches(self, client_id, rng, epoch):
            for inputs, labels in super().client_batches(client_id, rng, epoch):
                yield [inputs, labels, torch.zeros(len(labels), 2, 4, 4)]

    train(tmp_path, Strides(), data=WithImages([points(8)]), channels_last=channels_last)


@pytest.mark.parametrize(
    ("bits", "changed"), [(8, True), ("ternary", True), (16, False), (32, False)]
)
def test_low_bit_clients_save_in_int8(tmp_path, bits, changed):
    class Wide(Module):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__(
                nn.Sequential(
                    nn.Linear(FEATURES, 2000), nn.LayerNorm(2000), nn.Linear(2000, CLASSES)
                )
            )

    runs = [
        train(tmp_path / f"{lean}", Wide(), {bits: 1}, save_in_int8=lean, local_steps=1)
        for lean in (False, True)
    ]
    (exact, lean) = (run.run.history[0]["train/loss"] for run in runs)
    assert lean == exact  # before the first step
    assert same(*(run.server.params for run in runs)) != changed


def test_three_dimensional_convolutions(tmp_path):
    class Volumes(Module):
        def __init__(self):
            super().__init__(
                nn.Sequential(
                    nn.Unflatten(1, (1, 1, 2, 3)), nn.Conv3d(1, 3, (1, 2, 3)), nn.Flatten()
                )
            )

    assert train(tmp_path, Volumes(), {32: 2}).run.history[0]["clients/ok"] == 2


def test_gradients_are_clipped_together_and_those_of_the_optimizer_only(tmp_path):
    class Clipped(Module):
        def __init__(self):
            super().__init__()
            self.norms = []

        def configure_optimizers(self):
            # net[2] gathers gradients for ever
            return torch.optim.SGD(self.net[0].parameters(), 0.1)

        def configure_gradient_clipping(self, optimizer, **options):
            super().configure_gradient_clipping(optimizer, **options)
            self.norms.append(
                torch.cat([p.grad.flatten() for p in self.net[0].parameters()]).norm().item()
            )

    free, bound = Clipped(), Clipped()
    train(tmp_path / "free", free, local_epochs=4)
    train(tmp_path / "bound", bound, local_epochs=4, gradient_clip_val=0.05)
    assert min(free.norms) > 0.06
    assert bound.norms == pytest.approx([0.05] * len(bound.norms), rel=1e-3)


# ---- nothing leaks -------------------------------------------------------------------------------


LSQ = {"weights": 4, "activations": 8, "range_rule": "lsq", "granularity": "channel"}
SPECS = [32, 8, "ternary", "wage2888", "strict8", LSQ]


@pytest.mark.parametrize("before", SPECS, ids=str)
@pytest.mark.parametrize("after", SPECS, ids=str)
def test_a_client_sends_the_same_whatever_was_trained_before_it(tmp_path, before, after):
    """Client 1 is the only one that counts: client 0 trains before it, or has nothing to train
    on.
    """
    if before == after:
        after = {**LSQ, "activations": 16} if after is LSQ else {"weights": 8, "activations": 7}
    found = []
    for first in (points(12), points(0)):
        torch.manual_seed(3)
        module, sent = Module(), []
        module.net.append(nn.BatchNorm1d(CLASSES))

        class Spy(Callback):
            def on_client_end(self, trainer, client, record):
                if client.id == 1:
                    sent.append((record.uplink_bytes, record.metrics, float_state(module)))  # noqa: B023
                    assert all(p.grad is None for p in module.parameters())  # noqa: B023

        groups = [{"bits": before, "count": 1}, {"bits": after, "count": 1}]
        train(
            tmp_path, module, groups, data=HandMade([first, points(12, seed=7)]), callbacks=[Spy()]
        )
        found.append(sent[0])
    assert found[0][:2] == found[1][:2]
    assert same(found[0][2], found[1][2])


def test_evaluating_clients_changes_nothing(tmp_path):
    data = HandMade([points(12, seed) for seed in range(4)], held_out=points(9, seed=9))
    clients = [{"bits": bits, "count": 1} for bits in (32, 8, "strict8", LSQ)]
    runs = []
    for evaluates in ("none", "after", "both"):
        torch.manual_seed(1)
        runs.append(
            train(tmp_path, Module(), clients, data=data, max_rounds=3, evaluate_clients=evaluates)
        )
    assert same(runs[0].server.params, runs[1].server.params)
    assert same(runs[0].server.params, runs[2].server.params)
    assert "val/acc_local_int8" in runs[1].run.history[0]


def test_after_a_run_the_module_is_its_owners_again(tmp_path):
    module, data = Client(Net(batch_norm=True)), fake(64)
    trainer = train(tmp_path, module, {8: 1, 32: 1}, data=data, max_rounds=2)
    assert {type(layer) for layer in module.net} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU,
        nn.Flatten,
        nn.Linear,
    }
    assert all(layer.training for layer in module.modules())
    state = float_state(module)
    assert all(torch.equal(state[name], tensor) for name, tensor in trainer.server.params.items())
    assert torch.equal(
        state["net.1.running_var"],
        trainer.server.buffers["statistics"]["float32"]["net.1.running_var"],
    )
    assert (
        trainer.validate(module, data)["val/acc_float32"]
        == trainer.run.history[-1]["val/acc_float32"]
    )
    assert same(float_state(module), state)
    plain = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.fit(
            module, DataLoader(list(data.client_batches(0, RandomKeys(0), 0)), batch_size=None)
        )
    assert plain.global_step == data.num_batches(0)
    assert not same(float_state(module), state)


def test_layers_in_evaluation_mode_stay_in_it(tmp_path):
    class Frozen(Module):
        def __init__(self):
            super().__init__(
                nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(), nn.Linear(FEATURES, CLASSES))
            )
            self.net[0].eval()

        def on_train_batch_start(self, batch, batch_idx):
            assert [layer.training for layer in self.net] == [False, True, True]

        def on_validation_epoch_start(self):
            assert not any(layer.training for layer in self.modules())

    module = Frozen()
    train(
        tmp_path,
        module,
        {8: 1, 32: 1},
        data=HandMade([points(8)] * 2, held_out=points(4)),
        max_rounds=2,
    )
    assert [layer.training for layer in module.net] == [False, True, True]


class Shared(Client):
    """A backbone that is an attribute of its own and part of the network."""

    def __init__(self) -> None:
        backbone = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5))
        super().__init__(nn.Sequential(backbone, nn.Flatten(), nn.Linear(80, 4)))
        self.backbone = backbone


@pytest.mark.parametrize("norm", ["average", "group", "local"])
def test_batch_norm_under_two_names(tmp_path, norm):
    run = fit(tmp_path, module=Shared, max_rounds=2, norm=norm)
    assert int(run.server.buffers["counters"]["net.0.1.num_batches_tracked"]) == 4


def test_a_logged_validation_loss_counts_more_than_a_returned_one(tmp_path):
    class Both(Module):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", 1.0)
            return {"loss": torch.tensor(5.0), "extra": torch.tensor(2.0)}

    data = HandMade([points(10)], held_out=points(4))
    row = train(tmp_path, Both(), data=data).run.history[-1]
    assert (row["val/loss_float32"], row["val/extra_float32"]) == (1.0, 2.0)
