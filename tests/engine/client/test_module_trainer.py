"""What a client finds as `self.trainer`, `self.logger`, `self.current_epoch` and
`self.global_step`.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.fabric.loggers import CSVLogger, TensorBoardLogger
from lightning.fabric.plugins.precision import MixedPrecision
from torch import nn
from torch.optim import SGD, lr_scheduler

from bhfl.data import FromDatasets
from bhfl.engine import TooFewClientsError
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import CLASSES, FEATURES, HandMade, Module, points
from tests.federation import same

pytestmark = pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)")

SIZES = (8, 20, 12)
"""Samples of the clients; in batches of 4 they are 2, 5 and 3."""


def trainer(folder, clients: Any = None, **options: Any) -> FederatedTrainer:
    options = {
        "max_rounds": 2,
        "logger": False,
        "devices": 1,
        "default_root_dir": str(folder),
        "validate_first": False,
        **options,
    }
    return FederatedTrainer(clients or {32: len(SIZES)}, **options)


def data() -> HandMade:
    return HandMade(
        [points(size, seed) for seed, size in enumerate(SIZES)], held_out=points(5, seed=9)
    )


class Placed(Module):
    """Takes down where it is at each batch, and what is planned."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def setup(self, stage):
        self.planned = self.trainer.estimated_stepping_batches

    def training_step(self, batch, batch_idx):
        own = self.trainer
        planned = (
            own.max_epochs,
            own.num_training_batches,
            own.estimated_stepping_batches,
            own.max_steps,
        )
        self.seen.append((self.current_epoch, self.global_step, planned))
        return super().training_step(batch, batch_idx)


def expected(client: int, round: int, epochs: int, rounds: int) -> list[Any]:
    batches = -(-SIZES[client] // 4)
    planned = (rounds * epochs, batches, rounds * epochs * batches, -1)
    steps = range(round * epochs * batches, (round + 1) * epochs * batches)
    return [(step // batches, step, planned) for step in steps]


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_place_is_a_function_of_round_and_client(tmp_path, epochs):
    module = Placed()
    trainer(tmp_path, local_epochs=epochs).fit(module, data())
    assert module.seen == [
        place for r in range(2) for c in range(3) for place in expected(c, r, epochs, 2)
    ]
    assert module.planned == 2 * epochs * 5  # outside a client it is that of the largest


def test_the_place_is_the_same_after_a_resume(tmp_path):
    class Interrupting(Placed):
        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 1 and self.stops:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    whole = Placed()
    first = Interrupting()
    second = Placed()
    trainer(tmp_path / "a", max_rounds=3).fit(whole, data())
    first.stops = True
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "b", max_rounds=3).fit(first, data())
    trainer(tmp_path / "b", max_rounds=3).fit(second, data(), ckpt_path="last")
    assert first.seen + second.seen == whole.seen


def test_local_steps_count_in_steps(tmp_path):
    module = Placed()
    trainer(tmp_path, {32: 1}, local_steps=7).fit(module, HandMade([points(20)]))
    assert [(epoch, step) for epoch, step, _ in module.seen] == [
        *[(0, step) for step in range(5)], (1, 5), (1, 6), *[(2, step) for step in range(7, 12)],
        (3, 12), (3, 13),
    ]  # fmt: skip
    assert {planned for *_, planned in module.seen} == {(4, 5, 14, 14)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "callback_metrics",
            r"self\.trainer\.callback_metrics is not kept for federated clients; there is: ",
        ),
        (
            "train_dataloader",
            r"self\.trainer\.train_dataloader is not kept .*, num_training_batches, ",
        ),
        (
            "strategy.model_to_device",
            r"self\.trainer\.strategy\.model_to_device is not kept .*, root_device",
        ),
    ],
)
def test_what_is_not_kept_is_an_error_that_names_it_and_what_there_is(tmp_path, name, message):
    class Asking(Module):
        def training_step(self, batch, batch_idx):
            found = self.trainer
            for part in name.split("."):
                found = getattr(found, part)

    with pytest.raises(TooFewClientsError, match=message):
        trainer(tmp_path).fit(Asking(), data())


def test_what_a_client_sets_is_refused(tmp_path):
    class Stopping(Module):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = True

    with pytest.raises(
        TooFewClientsError, match=r"self\.trainer\.should_stop cannot be set by a federated client"
    ):
        trainer(tmp_path).fit(Stopping(), data())


def test_a_client_is_a_training_of_its_own(tmp_path, capsys):
    class Alone(Module):
        def training_step(self, batch, batch_idx):
            own = self.trainer
            assert own.is_global_zero
            assert not own.sanity_checking
            assert (
                own.world_size,
                self.global_rank,
                own.num_devices,
                own.accumulate_grad_batches,
            ) == (1, 0, 1, 1)
            assert own.datamodule is given
            assert own.lightning_module is self
            assert torch.equal(self.all_gather(batch[0]), batch[0])
            assert own.strategy.broadcast("x") == "x"
            assert own.strategy.reduce(batch[0]) is batch[0]
            own.strategy.barrier()
            copy.deepcopy(self)  # without a trainer, as in Lightning
            self.print("told once")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            assert (self.trainer.training, self.trainer.validating, self.trainer.testing) == (
                False,
                True,
                False,
            )
            assert self.trainer.evaluating

    given = data()
    trainer(tmp_path, max_rounds=1).fit(Alone(), given)
    assert capsys.readouterr().out == "told once\n" * 10


# ---- loggers -------------------------------------------------------------------------------------


class Drawing(Module):
    def training_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("own", 1.0, self.global_step)
        assert self.logger is self.loggers[0]
        return super().training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.logger.experiment.add_scalar("tested", 1.0, self.global_step)


def test_the_logger_of_the_run_is_the_module_s(tmp_path):
    class Knowing(Drawing):
        def on_train_start(self):
            assert isinstance(self.loggers[0], TensorBoardLogger)
            assert isinstance(self.loggers[1], CSVLogger)
            assert self.trainer.log_dir == str(federated.run.folder)
            assert self.trainer.default_root_dir == str(tmp_path)

    federated, module = trainer(tmp_path, max_rounds=1, logger=True), Knowing()
    federated.fit(module, data())
    written = b"".join(path.read_bytes() for path in federated.run.folder.glob("events*"))
    assert b"own" in written
    assert module.logger is None
    federated.test(module, data())  # measuring has no run folder: what is drawn is dropped


def test_without_a_logger_there_is_none(tmp_path):
    class Asking(Module):
        def training_step(self, batch, batch_idx):
            assert self.logger is None
            assert self.loggers == []
            return super().training_step(batch, batch_idx)

    trainer(tmp_path, max_rounds=1).fit(Asking(), data())


# ---- schedules, and steps of one's own -----------------------------------------------------------


def test_a_schedule_over_the_whole_run_ends_with_it(tmp_path):
    class OneCycle(Module):
        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), 0.1)
            total = self.trainer.estimated_stepping_batches
            schedule = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    module = OneCycle()
    trainer(tmp_path, {32: 1}, max_rounds=2, local_epochs=2).fit(module, HandMade([points(12)]))
    assert module.rates == pytest.approx([0.1 * (1 - step / 12) for step in range(12)])


def test_an_own_lr_scheduler_step_goes_on_over_rounds(tmp_path):
    """As for schedulers that are told the epoch, such as those of timm."""

    class Told:
        def __init__(self, optimizer: SGD) -> None:
            self.optimizer = optimizer

        def step(self, epoch: int) -> None:
            self.optimizer.param_groups[0]["lr"] = 0.1 / (epoch + 1)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    class Own(Module):
        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), 0.1)
            return [optimizer], [Told(optimizer)]

        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(epoch=self.current_epoch + 1)

    module = Own()
    trainer(tmp_path, {32: 1}, max_rounds=3, local_epochs=2).fit(module, HandMade([points(8)]))
    assert module.rates == pytest.approx(
        [0.1 / (epoch + 1) for epoch in range(6) for _ in range(2)]
    )


def test_the_rate_that_an_own_optimizer_step_sets_is_the_one_counted(tmp_path):
    class Warm(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.param_groups[0]["lr"] = 0.01 * (self.global_step + 1)
            optimizer.step(closure=optimizer_closure)

    module = Warm()
    trainer(tmp_path, {32: 1}, max_rounds=2).fit(module, HandMade([points(12)]))
    assert module.rates == pytest.approx([0.01 * (step + 1) for step in range(6)])


def test_an_optimizer_step_that_drops_its_closure_is_an_error(tmp_path):
    class Dropping(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure): ...

    with pytest.raises(
        TooFewClientsError,
        match=r"Dropping\.optimizer_step or its optimizer never called the closure",
    ):
        trainer(tmp_path).fit(Dropping(), data())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3.0, "training_step must return a tensor, a dict or None, got float"),
        ([torch.ones(())], "training_step must return a tensor, a dict or None, got list"),
        ({"loss": 3.0}, "the loss that training_step returned must be a tensor, got float"),
        (torch.ones(()), "does not require grad"),
    ],
)
def test_what_is_no_loss_is_an_error(tmp_path, returned, message):
    class Wrong(Module):
        def training_step(self, batch, batch_idx):
            return returned

    with pytest.raises(TooFewClientsError, match=message):
        trainer(tmp_path).fit(Wrong(), data())


# ---- metrics -------------------------------------------------------------------------------------


def test_metric_objects_begin_anew_in_each_epoch_and_may_be_reset_by_their_module(tmp_path):
    class Counted(Module):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=CLASSES)
            self.found, self.right = [], 0

        def training_step(self, batch, batch_idx):
            logits = self.net(batch[0])
            self.found.append(self.accuracy._update_count)
            self.accuracy(logits, batch[1])
            self.right += (logits.argmax(1) == batch[1]).sum().item()
            self.log(
                "acc", self.accuracy, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True
            )
            return nn.functional.cross_entropy(logits, batch[1])

    class Resetting(Counted):
        def on_train_epoch_end(self):
            self.accuracy.reset()

    for cls in (Counted, Resetting):
        module = cls()
        federated = trainer(tmp_path, {32: 1}, max_rounds=1, local_epochs=2)
        federated.fit(module, HandMade([points(10)]))
        assert module.found == [0, 1, 2, 0, 1, 2]
        assert federated.run.history[0]["train/acc"] == pytest.approx(module.right / 20)


@pytest.mark.parametrize("value", [None, "text", [1.0], {"a": 1.0}])
def test_what_cannot_be_logged_is_an_error(tmp_path, value):
    class Wrong(Module):
        def training_step(self, batch, batch_idx):
            self.log("x", value)

    with pytest.raises(
        TooFewClientsError,
        match=r"self\.log\('x', \.\.\.\) needs a number, a tensor or a metric, got",
    ):
        trainer(tmp_path).fit(Wrong(), data())


# ---- hooks of the data module --------------------------------------------------------------------


class Transferring(FromDatasets):
    """Scales while training, as an augmentation on the device would."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        assert dataloader_idx == 0
        return batch[0] + 1, batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        assert device.type == "cpu"
        return tuple(part.to(device) for part in batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return (batch[0] * 10 if self.trainer.training else batch[0]), batch[1]

    def teardown(self, stage):
        self.ended = [*getattr(self, "ended", []), stage]


class Seeing(Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Any] = {}

    def training_step(self, batch, batch_idx):
        self.inputs["train"] = batch[0].mean().item()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.inputs["val"] = batch[0].mean().item()
        super().validation_step(batch, batch_idx)


def sets() -> Any:
    return torch.utils.data.TensorDataset(torch.ones(24, FEATURES), torch.arange(24) % CLASSES)


def test_the_hooks_of_the_data_module_are_called(tmp_path):
    module, given = Seeing(), Transferring(train=sets(), test=sets(), batch_size=4)
    trainer(tmp_path, {32: 2}, max_rounds=1).fit(module, given)
    assert module.inputs == {"train": 20.0, "val": 2.0}
    assert given.ended == ["fit", "test"]
    assert given.trainer is None


def test_a_hook_of_both_is_the_data_module_s(tmp_path):
    class Both(Seeing):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            raise AssertionError

    given = Transferring(train=sets(), test=sets(), batch_size=4)
    with pytest.warns(
        UserWarning,
        match="Both and Transferring both override on_after_batch_transfer: that of the data",
    ):
        trainer(tmp_path, {32: 2}, max_rounds=1).fit(Both(), given)


def test_an_evaluation_hook_that_keeps_its_module_in_training_mode_is_obeyed(tmp_path):
    class Sampling(Module):
        def on_validation_model_eval(self):
            self.eval()
            self.net[1].train()

        def validation_step(self, batch, batch_idx):
            assert [layer.training for layer in self.net] == [False, True, False]
            super().validation_step(batch, batch_idx)

    trainer(tmp_path, max_rounds=1).fit(Sampling(), data())


def test_weights_that_are_set_before_the_first_round_count(tmp_path):
    """As of pretrained weights that are loaded in `setup` or `on_fit_start`."""

    class Pretrained(Module):
        def setup(self, stage):
            if stage == "fit":
                nn.init.zeros_(self.net[0].weight)

        def on_fit_start(self):
            nn.init.ones_(self.net[2].bias)

    class ByHand(Module):
        def __init__(self):
            super().__init__()
            nn.init.zeros_(self.net[0].weight)
            nn.init.ones_(self.net[2].bias)

    found = []
    for cls in (Pretrained, ByHand):
        torch.manual_seed(0)
        found.append(trainer(tmp_path, max_rounds=1).fit(cls(), data()).server.params)
    assert same(*found)


def test_logging_outside_the_hooks_that_may_is_an_error_of_lightning(tmp_path):
    class Early(Module):
        def on_fit_start(self):
            self.log("early", 1.0)

    with pytest.raises(L.fabric.utilities.exceptions.MisconfigurationException, match=r"self\.log"):
        trainer(tmp_path).fit(Early(), data())


def test_the_trial_of_the_memory_format_is_told_where_it_is(tmp_path):
    class Asking(Module):
        def __init__(self):
            super().__init__(
                nn.Sequential(
                    nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(8, 3)
                )
            )

        def training_step(self, batch):
            assert self.trainer.max_epochs == 1
            return super().training_step(batch, 0)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer(tmp_path, max_rounds=1, channels_last="auto").fit(Asking(), data())
    assert not [each for each in seen if "cannot be tried" in str(each.message)]


# ---- gradient scaling ----------------------------------------------------------------------------


class Scaled(Module):
    """Takes down the scaled loss, its gradients before clipping, and the scale."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.fails = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss

    def on_before_backward(self, loss):
        self.losses.append(loss.item())

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())
        if self.fails and len(self.norms) == 1:
            raise RuntimeError("after the gradients were unscaled")


@pytest.mark.parametrize("manual", [False, True])
def test_gradients_are_scaled_for_backward_alone_and_each_client_begins_anew(tmp_path, manual):
    federated, module = trainer(tmp_path, {32: 2}, max_rounds=1, accelerator="cpu"), Scaled(manual)
    federated.fabric.strategy._precision = MixedPrecision("16-mixed", "cpu")
    module.fails = True
    federated.fit(module, HandMade([points(8), points(8)], held_out=points(5)))
    assert federated.run.history[0]["clients/failed"] == 1
    assert min(module.losses) > 0.2 * 2**16
    assert len(module.norms) == 3
    assert 0 < max(module.norms) < 10
    assert module.norms[0] == pytest.approx(module.norms[1])


def test_lbfgs_and_gradient_scaling_do_not_go_together(tmp_path):
    class Limited(Module):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters())

    federated = trainer(tmp_path, max_rounds=1, accelerator="cpu")
    federated.fabric.strategy._precision = MixedPrecision("16-mixed", "cpu")
    with pytest.raises(
        TooFewClientsError, match=r"LBFGS cannot train under trainer\.precision 16-mixed"
    ):
        federated.fit(Limited(), data())


# ---- what is refused, and what is put up with ----------------------------------------------------


class WithoutStep(L.LightningModule):
    """Cannot be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, CLASSES)


class Iterating(Module):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            WithoutStep,
            "WithoutStep must define training_step and configure_optimizers to be trained",
        ),
        (
            Iterating,
            r"Iterating\.training_step takes dataloader_iter, .*: take batch and batch_idx",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(tmp_path, cls, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(cls(), data())
    assert not list(tmp_path.iterdir())


def test_an_index_of_the_dataloader_that_is_insisted_on_is_zero(tmp_path):
    class Insisting(Module):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            seen.append(dataloader_idx)
            super().validation_step(batch, batch_idx)

        def on_validation_batch_start(self, batch, batch_idx, dataloader_idx):
            seen.append(dataloader_idx)

        def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx):
            seen.append(dataloader_idx)

    seen: list[int] = []
    trainer(tmp_path, max_rounds=1).fit(Insisting(), data())
    assert seen == [0, 0, 0]
