"""Whatever `configure_optimizers` returns, rounds follow the learning rates of one long central
run.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from bhfl import algorithms
from bhfl.algorithms import FedProx
from bhfl.engine import TooFewClientsError
from bhfl.engine.callback import Callback
from bhfl.engine.client.optim import check_optimizers
from tests.engine.hand_made import FEATURES, HandMade, Module, float_state, points
from tests.federation import fit, same

pytestmark = pytest.mark.filterwarnings("ignore:round .* client 0 failed")
BATCHES, ROUNDS = 5, 4
"""Of the only client; its rounds are an epoch each unless a test says otherwise."""


def data(batches: int = BATCHES) -> HandMade:
    return HandMade([points(4 * batches)], held_out=points(9, seed=1))


class Configured(Module):
    """Returns what `configure` makes of an optimiser."""

    def __init__(self, configure: Any) -> None:
        super().__init__()
        self.configure = configure

    def configure_optimizers(self) -> Any:
        return self.configure(SGD(self.parameters(), 0.1, momentum=0.9))


def rates(folder, configure, batches: int = BATCHES, **options) -> list[float]:
    module = Configured(configure)
    options = {"max_rounds": ROUNDS, "max_failed_rounds": 0, **options}
    fit(folder, clients={32: 1}, module=lambda: module, data=data(batches), **options)
    return module.rates


def central(
    schedule, interval: str, epochs: int = ROUNDS, frequency: int = 1, batches: int = BATCHES
) -> list[float]:
    """The learning rates of a plain loop."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9)
    scheduler = schedule(optimizer)
    found = []
    steps = 0
    for epoch in range(epochs):
        for _ in range(batches):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            steps += 1
            if interval == "step" and steps % frequency == 0:
                scheduler.step()
        if interval == "epoch" and (epoch + 1) % frequency == 0:
            scheduler.step()
    return found


def step(optimizer):
    return lr_scheduler.StepLR(optimizer, 2, 0.5)


def warm_up(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 7))


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=ROUNDS * BATCHES + 1)


def two_phases(optimizer):
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    return lr_scheduler.SequentialLR(
        optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 20)], milestones=[3]
    )


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.9), step(optimizer)]
    )


FORMS = {
    "optimizer": (lambda o: o, None),
    "list": (lambda o: [o], None),
    "tuple": (lambda o: (o,), None),
    "dict": (lambda o: {"optimizer": o}, None),
    "two lists": (lambda o: ([o], [step(o)]), "epoch"),
    "list and dict": (lambda o: ([o], [{"scheduler": step(o), "interval": "step"}]), "step"),
    "dict and scheduler": (lambda o: {"optimizer": o, "lr_scheduler": step(o)}, "epoch"),
    "dict and dict": (
        lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": step(o), "interval": "step"}},
        "step",
    ),
    "list of dicts": (lambda o: [{"optimizer": o, "lr_scheduler": step(o)}], "epoch"),
    "tuple of dicts": (
        lambda o: ({"optimizer": o, "lr_scheduler": {"scheduler": step(o), "interval": "step"}},),
        "step",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_lightning_takes(tmp_path, form):
    configure, interval = FORMS[form]
    expected = central(step, interval) if interval else [0.1] * (ROUNDS * BATCHES)
    assert rates(tmp_path, configure) == expected


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (one_cycle, "step"),
        *((s, i) for s in (step, warm_up, two_phases, chained) for i in ("step", "epoch")),
    ],
)
@pytest.mark.parametrize("frequency", [1, 3])
def test_rounds_continue_a_schedule_exactly(tmp_path, schedule, interval, frequency):
    def configure(optimizer):
        entry = {"scheduler": schedule(optimizer), "interval": interval, "frequency": frequency}
        return {"optimizer": optimizer, "lr_scheduler": entry}

    assert rates(tmp_path, configure) == central(schedule, interval, frequency=frequency)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_rounds_have_the_rates_of_one_lightning_trainer(tmp_path, interval):
    def configure(optimizer):
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": warm_up(optimizer), "interval": interval},
        }

    module = Configured(configure)
    trainer = L.Trainer(
        max_epochs=2 * ROUNDS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
        limit_val_batches=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(TensorDataset(*points(4 * BATCHES)), 4))
    assert rates(tmp_path, configure, local_epochs=2) == module.rates


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_restart_begins_anew_in_each_round(tmp_path, interval):
    def configure(optimizer):
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": step(optimizer), "interval": interval},
        }

    found = rates(tmp_path, configure, lr_schedule="restart", local_epochs=3)
    assert found == central(step, interval, epochs=3) * ROUNDS


def test_steps_that_are_no_whole_epochs(tmp_path):
    """Seven steps of batches of five: two passes a round, of which the second is cut short."""

    def configure(optimizer):
        return {"optimizer": optimizer, "lr_scheduler": warm_up(optimizer)}

    by_pass = list(central(warm_up, "epoch", epochs=2 * ROUNDS, batches=1))
    expected = [
        rate
        for i in range(ROUNDS)
        for rate in by_pass[2 * i : 2 * i + 1] * 5 + by_pass[2 * i + 1 : 2 * i + 2] * 2
    ]
    assert rates(tmp_path, configure, local_steps=7) == expected


def test_clients_with_other_numbers_of_batches_each_have_their_own_place(tmp_path):
    module = Configured(
        lambda o: {"optimizer": o, "lr_scheduler": {"scheduler": warm_up(o), "interval": "step"}}
    )
    fit(tmp_path, clients={32: 2}, module=lambda: module, data=HandMade([points(8), points(20)]))
    short, long = (central(warm_up, "step", epochs=3, batches=n) for n in (2, 5))
    assert module.rates == [
        r for i in range(3) for r in short[2 * i : 2 * i + 2] + long[5 * i : 5 * i + 5]
    ]


# ---- ReduceLROnPlateau ---------------------------------------------------------------------------


def plateau(monitor: str, **entry):
    def configure(optimizer):
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": monitor, **entry},
        }

    return configure


@pytest.mark.parametrize("monitor", ["val/loss", "val_loss", "train/loss"])
def test_plateaus_follow_the_metrics_of_the_rounds(tmp_path, monitor):
    module = Configured(plateau(monitor))
    trainer = fit(
        tmp_path,
        clients={32: 1},
        module=lambda: module,
        data=data(),
        max_rounds=6,
        max_failed_rounds=0,
    )
    optimizer = SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
    expected = []
    for row in trainer.run.history:
        expected += [optimizer.param_groups[0]["lr"]] * BATCHES
        scheduler.step(row[monitor.replace("_", "/")])
    assert module.rates == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("measures", ["none", "after"])
def test_plateaus_wait_for_the_first_validation(tmp_path, measures):
    options = {"check_val_every_n_rounds": 3, "max_rounds": 5, "evaluate_clients": measures}
    found = rates(tmp_path, plateau("val/loss"), **options)
    assert found[: 3 * BATCHES] == [0.1] * (3 * BATCHES)


def test_plateaus_that_restart_follow_what_the_client_logs(tmp_path):
    found = rates(
        tmp_path, plateau("train_loss"), lr_schedule="restart", local_epochs=5, max_rounds=2
    )
    first = found[: 5 * BATCHES]
    assert first[0] == found[5 * BATCHES] == 0.1
    assert first[-1] < 0.1


OWNER = "the monitor of ReduceLROnPlateau in Configured.configure_optimizers must be a logged"


@pytest.mark.parametrize("monitor", ["val_lss", "train/lss", "val/loss_int4", "val_loss_local_avg"])
def test_a_monitor_that_is_never_logged_is_refused_after_the_first_round(tmp_path, monitor):
    tag = monitor.replace("l_", "l/", 1)
    with pytest.raises(ValueError, match=f"^{OWNER} metric, got '{tag}'; logged: .*val/acc, "):
        rates(tmp_path, plateau(monitor))


def test_a_monitor_that_validation_lacks_is_refused_before_the_first_round(tmp_path, monkeypatch):
    monkeypatch.setattr("bhfl.engine.fit.run_round", lambda *_: pytest.fail("a client trained"))
    with pytest.raises(ValueError, match=f"^{OWNER} metric, got 'val/lss'; logged: val/acc, "):
        rates(tmp_path / "a", plateau("val_lss"), validate_first=True)


def test_a_monitor_that_is_never_logged(tmp_path):
    with pytest.raises(
        TooFewClientsError,
        match=r"monitors 'train/lss', which the client did not log; logged: train/loss",
    ):
        rates(tmp_path / "b", plateau("lss"), lr_schedule="restart")
    assert len(rates(tmp_path / "c", plateau("val_lss", strict=False))) == ROUNDS * BATCHES


# ---- several optimisers --------------------------------------------------------------------------


class Manual(L.LightningModule):
    """Two optimisers that take turns, in every idiom of manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 4), nn.Linear(4, 3)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers, scheduler = self.optimizers(), self.lr_schedulers()
        for optimizer, part in zip(optimizers, (self.first, self.second), strict=True):
            self.toggle_optimizer(optimizer)
            assert all(
                p.requires_grad == any(p is q for q in part.parameters()) for p in self.parameters()
            )
            optimizer.zero_grad()
            self.manual_backward(
                nn.functional.cross_entropy(self.second(self.first(batch[0])), batch[1])
            )
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [
            SGD(self.first.parameters(), 0.1, momentum=0.9),
            torch.optim.Adam(self.second.parameters(), 0.01),
        ]
        return optimizers, [lr_scheduler.ExponentialLR(optimizers[0], 0.5)]


def test_manual_optimisation_equals_the_loop_by_hand(tmp_path):
    torch.manual_seed(0)
    module, reference = Manual(), Manual()
    reference.load_state_dict(module.state_dict())
    client = points(4 * BATCHES)
    fit(tmp_path, clients={32: 1}, module=lambda: module, data=HandMade([client]), max_rounds=1)
    (sgd, adam), (scheduler,) = reference.configure_optimizers()
    for x, y in zip(client[0].split(4), client[1].split(4), strict=True):
        for optimizer, part in ((sgd, reference.first), (adam, reference.second)):
            reference.zero_grad()
            nn.functional.cross_entropy(reference.second(reference.first(x)), y).backward()
            nn.utils.clip_grad_norm_(part.parameters(), 0.5)
            optimizer.step()
        scheduler.step()
    assert same(float_state(module), float_state(reference))


def test_one_optimizer_and_one_scheduler_are_not_wrapped_in_lists(tmp_path):
    class Single(Manual):
        def training_step(self, batch, batch_idx):
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            assert isinstance(optimizer, SGD)
            assert isinstance(scheduler, lr_scheduler.StepLR)
            assert scheduler.last_epoch == rounds_before  # one step for each epoch before
            optimizer.zero_grad()
            self.manual_backward(self.second(self.first(batch[0])).square().mean())
            optimizer.step()

        def on_train_epoch_end(self):
            self.lr_schedulers().step()

        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), 0.1)
            return {"optimizer": optimizer, "lr_scheduler": step(optimizer)}

    class Round(Callback):
        def on_round_end(self, trainer, metrics):
            nonlocal rounds_before
            rounds_before = metrics["round"]

    rounds_before = 0
    fit(
        tmp_path,
        clients={32: 1},
        module=Single,
        data=data(),
        max_failed_rounds=0,
        callbacks=[Round()],
    )


def test_a_plateau_of_a_manual_module_is_its_own_business(tmp_path):
    class WithPlateau(Manual):
        def configure_optimizers(self):
            optimizers, _ = super().configure_optimizers()
            return optimizers, [lr_scheduler.ReduceLROnPlateau(optimizers[0])]

        def training_step(self, batch, batch_idx):
            self.lr_schedulers().step(1.0)

    fit(tmp_path, clients={32: 1}, module=WithPlateau, data=data(), max_failed_rounds=0)


def test_what_manual_modules_cannot_have(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"gradient_clip_val needs automatic optimization: call self\.clip_gradients",
    ):
        fit(tmp_path, clients={32: 1}, module=Manual, data=data(), gradient_clip_val=1.0)
    with pytest.raises(
        ValueError,
        match=r"FedProx changes losses or gradients, which needs automatic opt.*; Manual",
    ):
        fit(tmp_path, FedProx(), clients={32: 1}, module=Manual, data=data())


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda o: None, r"Configured\.configure_optimizers must return an optimizer, got None"),
        (lambda o: [], r"Configured\.configure_optimizers must return an optimizer, got \[\]"),
        (
            lambda o: [o, SGD(o.param_groups[0]["params"], 1.0)],
            r"Configured\.configure_optimizers returned 2 optimizers: several need manual",
        ),
        (
            lambda o: "sgd",
            "Configured.* asks for what lightning refuses: .*Unknown configuration",
        ),
        (
            lambda o: {"lr_scheduler": step(o)},
            "Configured.* asks for what lightning refuses: KeyError: 'optimizer'",
        ),
    ],
)
def test_what_cannot_be_trained_with_is_told_before_there_is_a_folder(tmp_path, configure, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        rates(tmp_path, configure)
    assert not list(tmp_path.iterdir())


class Asking(L.LightningModule):
    """A client whose optimisers are made by a function of the test."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = nn.Linear(1, 1), make

    def configure_optimizers(self):
        return self.make(self)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda m: torch.optim.SGD(m.parameters(), -1.0),
            "ValueError: Invalid learning rate: -1.0",
        ),
        (lambda m: torch.optim.SGD(m.parameters(), 1.0, momentum=-1), "Invalid momentum value: -1"),
        (lambda m: torch.optim.SGD([], 1.0), "optimizer got an empty parameter list"),
        (lambda m: torch.optim.SGD(m.parameters(), "x"), "TypeError"),
        (
            lambda m: [
                [s := torch.optim.SGD(m.parameters(), 1.0)],
                [torch.optim.lr_scheduler.StepLR(s, 0)],
            ],
            "ZeroDivisionError",
        ),
    ],
)
def test_what_torch_refuses_is_told_at_set_up(make, why):
    with pytest.raises(
        ValueError, match=f"Asking.configure_optimizers asks for what torch refuses: .*{why}"
    ):
        check_optimizers(Asking(make))


@pytest.mark.parametrize(
    ("method", "descends"),
    [
        (algorithms.FedProx(), True),
        (algorithms.FedProx(0), False),
        (algorithms.SCAFFOLD(), True),
        (algorithms.FedCOMGATE(allow_inexact=True), True),
        (algorithms.FedDyn(), True),
        (algorithms.Ditto(), True),
        (algorithms.MOON("net"), True),
        (algorithms.Median(algorithms.FedDyn()).client_half, True),
        (algorithms.FedNova(), False),
        (algorithms.FedRep(["net"], 1), False),
    ],
)
def test_methods_that_need_descent_refuse_optimizers_that_go_up(method, descends):
    up = Asking(lambda m: torch.optim.SGD(m.parameters(), 1.0, maximize=True))
    down = Asking(lambda m: torch.optim.SGD(m.parameters(), 1.0))
    path = {"class_path": "SGD", "init_args": {"lr": 0.1, "maximize": True}}
    group = SimpleNamespace(optimizer=path, label="one")
    check_optimizers(down, method=method)
    for module, groups in ((up, ()), (down, [group, group])):
        if descends:
            told = f"{type(method).__name__} changes losses or gradients .* maximize must be false"
            with pytest.raises(ValueError, match=told):
                check_optimizers(module, groups, method)
        else:
            check_optimizers(module, groups, method)


def test_sparse_adam_needs_a_layer_with_sparse_gradients():
    def sparse_adam(module):
        return torch.optim.SparseAdam(list(module.parameters()))

    told = "must take dense gradients, as no layer of Asking has sparse=True, got SparseAdam"
    with pytest.raises(ValueError, match=told):
        check_optimizers(Asking(sparse_adam))
    rare = Asking(sparse_adam)
    rare.words = torch.nn.Embedding(3, 2, sparse=True)
    check_optimizers(rare)


def test_what_only_a_client_can_ask_for_is_left_to_it():
    check_optimizers(Asking(lambda m: torch.optim.SGD(m.parameters(), 1.0 / m.trainer.max_epochs)))
    check_optimizers(Asking(lambda m: torch.optim.SGD(m.parameters(), 1.0)))
