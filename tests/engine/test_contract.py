"""Lightning's contract for a LightningModule and a data module: one table, made by running
`lightning.Trainer` itself.

Every hook of a module writes down when it was called, with what, and where it thinks it is. A
client of the same batches must write the same, but for what is filtered out here by name:

* what is called once a run and not once a training (`ONCE`), which has a table of its own;
* validation, which comes after the round and not inside an epoch, and is compared by itself;
* ``configure_optimizers`` at set-up, which only tries whether torch takes what the module asks for;
* over several rounds, what is called once for each of a client's trainings (`EACH`).
"""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader

from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import CLASSES, FEATURES, HandMade, float_state, points
from tests.federation import fit, same

pytestmark = [
    pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)"),
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]

STEPS = ("training_step", "validation_step", "test_step")
HOOKS = sorted(
    {
        name
        for owner in (ModelHooks, DataHooks, CheckpointHooks)
        for name in vars(owner)
        if not name.startswith("_")
    }
    - {
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "predict_dataloader",
        "configure_sharded_model",
    }
    | {
        "configure_optimizers",
        "backward",
        "optimizer_step",
        "optimizer_zero_grad",
        "lr_scheduler_step",
    }
    | {"configure_gradient_clipping", "configure_callbacks", *STEPS}
)
ONCE = {
    "configure_callbacks",
    "prepare_data",
    "setup",
    "configure_model",
    "on_fit_start",
    "on_fit_end",
    "teardown",
}
EACH = {"configure_optimizers", "on_train_start", "on_train_end"}
BATCHES = ("estimated_stepping_batches", "num_training_batches")
"""Asked for where there are training batches."""
TRAINER = (
    "max_epochs", *BATCHES, "is_global_zero", "sanity_checking", "training", "validating",
    "testing", "global_rank", "world_size", "accumulate_grad_batches", "gradient_clip_val",
    "logger",
)  # fmt: skip
SIZE, BATCH = 12, 4


def told(value: Any) -> Any:
    """A value as the table holds it."""
    if isinstance(value, Tensor):
        return (
            "tensor",
            tuple(value.shape),
            value.requires_grad,
            value.item() if value.numel() == 1 else None,
        )
    if isinstance(value, (list, tuple)):
        return [told(item) for item in value]
    if isinstance(value, dict):
        return {key: told(item) for key, item in value.items()}
    if isinstance(value, torch.device):
        return str(value)
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return (
        "" + value
        if isinstance(value, str)
        else value
        if plain
        else type(value).__name__.replace("partial", "Closure")
    )


class Told:
    """Mixed in before a module: each hook writes itself down, and does what it did."""

    calls: list[tuple[Any, ...]]

    def note(self, name: str, arguments: Any, options: Any) -> None:
        rate = self.optimizer.param_groups[0]["lr"] if getattr(self, "optimizer", None) else None
        place = (self.current_epoch, self.global_step, rate, self.training, torch.is_grad_enabled())
        known = (
            []
            if name in ONCE
            else [a for a in TRAINER if a not in BATCHES or not self.trainer.testing]
        )
        trainer = {attribute: getattr(self.trainer, attribute) for attribute in known}
        self.calls.append((name, told(arguments), told(options), place, trainer))


def telling(cls: type) -> type:
    """A subclass of `cls` of which every hook is told."""

    def hook_of(name: str):
        before = getattr(cls, name)

        def hook(self, *arguments, **options):
            self.note(name, arguments, options)
            return before(self, *arguments, **options)

        return functools.wraps(before)(hook) if name in STEPS else hook

    return type(cls.__name__, (Told, cls), {name: hook_of(name) for name in HOOKS})


class Plain(L.LightningModule):
    """A linear classifier, trained by plain SGD: it keeps nothing from round to round but its
    weights.
    """

    interval: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)
        self.calls: list[Any] = []
        self.optimizer: Any = None

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val/loss", loss)
        return {"loss": loss, "logits": self.net(batch[0])}

    def test_step(self, batch, batch_idx):
        return self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        self.optimizer = SGD(self.parameters(), 0.4)
        if self.interval is None:
            return self.optimizer
        schedule = {
            "scheduler": lr_scheduler.StepLR(self.optimizer, 1, 0.5),
            "interval": self.interval,
        }
        return {"optimizer": self.optimizer, "lr_scheduler": schedule}


class ByStep(Plain):
    interval = "step"


class ByEpoch(Plain):
    interval = "epoch"


class WithoutIndex(ByStep):
    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step


class WithDataloaderIndex(Plain):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        assert dataloader_idx == 0
        return super().validation_step(batch, batch_idx)


class AnyArguments(Plain):
    def training_step(self, *args, **kwargs):
        batch, batch_idx = args
        return super().training_step(batch, batch_idx)

    def on_train_batch_start(self, *args): ...

    def on_train_batch_end(self, *args): ...


class Dictionary(Plain):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        return {
            "loss": F.cross_entropy(logits, batch[1]),
            "logits": logits.detach(),
            "size": len(batch[1]),
        }


class Stopping(ByStep):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx >= 2 else None


class StoppingByEpoch(Stopping):
    interval = "epoch"


class NeverStarting(ByStep):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 1 else None


class WarmedUp(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.4 * min(1.0, (self.trainer.global_step + 1) / 5)
        optimizer.step(closure=optimizer_closure)


class ClosureByHand(Plain):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        if batch_idx % 2:
            optimizer.step()

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if not batch_idx % 2:
            optimizer.zero_grad()


class Clipping(Plain):
    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ):
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class OwnBackward(Plain):
    def backward(self, loss, *args, **kwargs):
        (loss * 2).backward(*args, **kwargs)


class OwnSchedule(ByEpoch):
    def lr_scheduler_step(self, scheduler, metric):
        assert metric is None
        scheduler.step()


class LimitedMemory(Plain):
    def configure_optimizers(self):
        self.optimizer = torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)
        return self.optimizer


class Transferring(Plain):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch[0] + 1, batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return tuple(part.to(device) for part in batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 2, batch[1]


class Manual(Plain):
    """Accumulates over two batches by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss, "more": batch_idx}


class TwoOptimizers(Manual):
    """As in a GAN: each has its turn in every batch."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            with self.toggled_optimizer(optimizer):
                optimizer.zero_grad()
                self.manual_backward(Plain.training_step(self, batch, batch_idx))
                optimizer.step()

    def configure_optimizers(self):
        self.optimizer = SGD([self.net.weight], 0.3)
        return self.optimizer, SGD([self.net.bias], 0.2)


class Closing(Manual):
    """Manual, with a closure."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = Plain.training_step(self, batch, batch_idx)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)


CONTRACT = [
    Plain, ByStep, ByEpoch, WithoutIndex, WithDataloaderIndex, AnyArguments, Dictionary, Stopping,
    StoppingByEpoch, NeverStarting, WarmedUp, ClosureByHand, Clipping, OwnBackward, OwnSchedule,
    LimitedMemory, Transferring, Manual, TwoOptimizers, Closing,
]  # fmt: skip


def two_of(cls: type) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module = telling(cls)()
    return module, copy.deepcopy(module)


def data() -> HandMade:
    return HandMade([points(SIZE)], BATCH, held_out=points(5, seed=1))


def lightning(epochs: int, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def batches(data: HandMade, stage: str = "train") -> DataLoader[Any]:
    """The very batches that a client gets."""
    found = data.client_batches(0, None, 0) if stage == "train" else data.val_batches()  # type: ignore[arg-type]
    return DataLoader(list(found), batch_size=None)  # type: ignore[arg-type]


def under_lightning(module: L.LightningModule, epochs: int, **options: Any) -> L.Trainer:
    trainer = lightning(epochs, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, batches(data()))
    return trainer


def as_client(folder, module: L.LightningModule, rounds: int, **options: Any) -> FederatedTrainer:
    options = {
        "max_failed_rounds": 0,
        "monitor": "val/loss",
        "mode": "min",
        "channels_last": False,
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(
            folder,
            clients={32: 1},
            module=lambda: module,
            data=data(),
            max_rounds=rounds,
            **options,
        )


def training(module: Any, *dropped: str) -> list[Any]:
    """What was called while the module was being trained."""
    in_training = [call for call in module.calls if call[0] not in ONCE and call[4]["training"]]
    if [call[0] for call in in_training[:2]] == ["configure_optimizers"] * 2:
        del in_training[1]  # the first was at set-up, to see whether torch takes them
    return [call for call in in_training if call[0] not in dropped and "validation" not in call[0]]


def evaluating(module: Any, stage: str) -> list[Any]:
    """What was called while it was validated or tested, in Lightning's first pass."""
    found = [call for call in module.calls if call[0] not in ONCE and call[4][stage]]
    return [call for call in found if call[0] != "on_validation_model_zero_grad"]


@pytest.mark.parametrize("cls", CONTRACT)
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_client_is_told_what_lightning_tells(tmp_path, cls, epochs):
    ours, theirs = two_of(cls)
    clip = {"gradient_clip_val": 0.3} if cls in (Plain, ByStep, ByEpoch) else {}
    under_lightning(theirs, epochs, **clip)
    as_client(tmp_path, ours, 1, local_epochs=epochs, **clip)
    assert training(ours) == training(theirs)
    assert len(training(ours)) > 20
    assert same(float_state(ours), float_state(theirs))


OTHERWISE = {Stopping, StoppingByEpoch, NeverStarting, Manual, LimitedMemory}
"""Make fewer steps than planned, by which rounds are counted, or carry a memory or gradients over
an epoch's end.
"""


@pytest.mark.parametrize("cls", [cls for cls in CONTRACT if cls not in OTHERWISE])
def test_rounds_go_on_where_the_round_before_ended(tmp_path, cls):
    ours, theirs = two_of(cls)
    under_lightning(theirs, 4)
    as_client(tmp_path, ours, 2, local_epochs=2)
    replayed = {"lr_scheduler_step"}  # of the rounds before
    assert training(ours, *EACH, *replayed) == training(theirs, *EACH, *replayed)
    assert same(float_state(ours), float_state(theirs))


@pytest.mark.parametrize(
    "cls", [Plain, WithoutIndex, WithDataloaderIndex, AnyArguments, Transferring]
)
def test_validation_and_test_are_those_of_lightning(tmp_path, cls):
    ours, theirs = two_of(cls)
    trainer = lightning(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(theirs, batches(data()), batches(data(), "val"))
        trainer.test(theirs, batches(data(), "val"), verbose=False)
    as_client(tmp_path, ours, 1)
    for stage in ("validating", "testing"):
        assert evaluating(ours, stage) == evaluating(theirs, stage)
        assert len(evaluating(ours, stage)) >= 12


def test_what_is_called_once_a_run(tmp_path):
    ours, theirs = two_of(Plain)
    trainer = under_lightning(theirs, 1)
    trainer.test(theirs, batches(data(), "val"), verbose=False)
    as_client(tmp_path, ours, 3)
    lightnings, found = ([call[:3] for call in m.calls if call[0] in ONCE] for m in (theirs, ours))
    assert [call[0] for call in lightnings] == [
        "configure_callbacks", "prepare_data", "setup", "configure_model",
        "on_fit_start", "on_fit_end", "teardown",
        "configure_callbacks", "prepare_data", "setup", "configure_model", "teardown",
    ]  # fmt: skip
    fit, test = ({"stage": stage} for stage in ("fit", "test"))
    assert found == [
        ("prepare_data", [], {}), ("setup", [], fit), ("setup", [], test),
        ("configure_model", [], {}), ("on_fit_start", [], {}), ("on_fit_end", [], {}),
        ("teardown", [], fit), ("teardown", [], test),
    ]  # fmt: skip
    assert all(call in lightnings for call in found)
    each = [call[0] for call in ours.calls if call[0] in EACH]
    once_at_set_up, of_clients = each[:1], each[1:]
    assert once_at_set_up == ["configure_optimizers"]
    assert of_clients == ["configure_optimizers", "on_train_start", "on_train_end"] * 3
