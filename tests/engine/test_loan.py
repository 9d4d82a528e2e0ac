"""A model comes back usable, however a run ends: float layers, the last server state, modes and
gradients as lent.
"""

from __future__ import annotations

import signal
import warnings
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bhfl.algorithms import FedProx
from bhfl.analysis import analyze
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.callback import Callback
from bhfl.engine.forewarn import is_compiled
from bhfl.engine.loan import Loan
from bhfl.engine.trainer import FederatedTrainer
from bhfl.export import export_run
from bhfl.quant import QuantLinear
from tests.engine.hand_made import CLASSES, FEATURES, HandMade, Module, float_state, points
from tests.federation import same

pytestmark = pytest.mark.filterwarnings("ignore:round .* client . (failed|rejected)")


class Lent(Module):
    """Lent with a layer that does not train, and one in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(FEATURES, 7), nn.Dropout(0.1), nn.Linear(7, CLASSES))
        )
        self.net[0].bias.requires_grad_(False)
        self.net[1].eval()

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class InTest(Lent):
    def test_step(self, batch, batch_idx):
        raise RuntimeError("on purpose")


class InValidation(Lent):
    def validation_step(self, batch, batch_idx):
        raise RuntimeError("on purpose")


class Interrupted(Lent):
    def training_step(self, batch, batch_idx):
        self.freeze()
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        self.unfreeze()
        return super().training_step(batch, batch_idx)


class Leaving(Lent):
    def on_train_epoch_end(self):
        signal.raise_signal(signal.SIGTERM)


class Unconfigurable(Lent):
    def on_fit_start(self):
        raise RuntimeError("on purpose")


class Refusing(Algorithm):
    def init_server(self, params, clients):
        raise RuntimeError("on purpose")


class Failing(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.fail)

    @staticmethod
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("on purpose")


class WithNumber(Lent):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("number", torch.zeros(2, dtype=torch.float64))


def trainer(folder, algorithm: Algorithm | None = None, **options: Any) -> FederatedTrainer:
    options = {
        "max_rounds": 3,
        "logger": False,
        "devices": 1,
        "default_root_dir": str(folder),
        **options,
    }
    return FederatedTrainer({"ternary": 1, 32: 1}, algorithm, **options)


def data() -> HandMade:
    return HandMade([points(8), points(8, seed=1)], held_out=points(5, seed=2))


def check_usable(module: L.LightningModule, weights: dict[str, torch.Tensor] | None) -> None:
    """As it was lent, but for its weights; `lightning.Trainer` trains it."""
    assert [type(layer) for layer in module.net] == [nn.Linear, nn.Dropout, nn.Linear]
    assert not any(isinstance(layer, QuantLinear) for layer in module.modules())
    assert [layer.training for layer in module.net] == [True, False, True]
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in module.parameters())
    assert module._trainer is None
    assert module.fabric is None
    assert not {"log", "log_dict", "forward"} & vars(module).keys()
    if weights is not None:
        assert same(float_state(module), weights)
    inputs = points(4)[0]
    module.eval()
    by_hand = module.net[2].weight @ (inputs @ module.net[0].weight.T + module.net[0].bias).T
    assert torch.allclose(module.net(inputs), by_hand.T + module.net[2].bias, atol=1e-6)
    module.train()
    plain = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accelerator="cpu", enable_model_summary=False,
    )  # fmt: skip
    module.training_step = lambda batch, batch_idx: Module.training_step(module, batch, batch_idx)
    module.on_fit_start = module.on_train_epoch_end = lambda: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain.fit(module, DataLoader(list(data().client_batches(0, None, 0)), batch_size=None))
    assert plain.global_step == 2


ENDINGS = {
    "Ctrl-C in a round": (Interrupted, {}, KeyboardInterrupt),
    "SIGTERM": (Leaving, {}, SystemExit),
    "test_step": (InTest, {}, RuntimeError),
    "validation_step": (InValidation, {}, RuntimeError),
    "on_fit_start": (Unconfigurable, {}, RuntimeError),
    "set-up refused by the algorithm": (Lent, {"algorithm": Refusing()}, RuntimeError),
    "set-up refused for the model's state": (WithNumber, {}, ValueError),
    "set-up refused for the options": (Lent, {"patience": 1, "val": False}, ValueError),
    "a callback at the start": (Lent, {"callbacks": [Failing("on_fit_start")]}, RuntimeError),
    "a callback between clients": (Lent, {"callbacks": [Failing("on_client_end")]}, RuntimeError),
    "a callback between rounds": (Lent, {"callbacks": [Failing("on_round_end")]}, RuntimeError),
    "a callback at the end": (Lent, {"callbacks": [Failing("on_fit_end")]}, RuntimeError),
    "an unknown monitor": (Lent, {"monitor": "val/nonsense"}, ValueError),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_comes_back_usable(tmp_path, ending):
    cls, options, error = ENDINGS[ending]
    # a validation_step is to fail after training
    options = {"validate_first": False, **options}
    module, given = cls(), data()
    if not options.pop("val", True):
        given.held_out = None
    first = float_state(module)
    federated = trainer(tmp_path, **options)
    with pytest.raises(error):
        federated.fit(module, given)
    reached = federated.server.params or {name: first[name] for name in first}
    extra = {name: first[name] for name in first.keys() - reached.keys()}
    assert (federated.server.round > 0) == (ending in ROUNDS)
    check_usable(module, {**reached, **extra})


ROUNDS = {
    "Ctrl-C in a round",
    "test_step",
    "a callback between rounds",
    "a callback at the end",
    "validation_step",
}
ROUNDS |= {"an unknown monitor"}


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_model_comes_back_from_being_measured(tmp_path, command):
    module = InTest() if command == "test" else InValidation()
    before = float_state(module)
    with pytest.raises(RuntimeError, match="on purpose"):
        getattr(trainer(tmp_path), command)(module, data())
    check_usable(module, before)


def test_a_model_comes_back_from_a_failing_analysis_and_a_failing_export(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="the extra 'export' is not installed")
    options = {"max_rounds": 1, "logger": False, "devices": 1, "default_root_dir": str(tmp_path)}
    federated, module = FederatedTrainer({"ternary": 1, 32: 1}, **options), Lent()
    federated.fit(module, data())
    reached = {**float_state(module), **federated.server.params}
    monkeypatch.setattr("bhfl.export.run.save_quantized", Failing.fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        export_run(federated, module, data(), ckpt_path="last")
    check_usable(module, reached)
    failing = InValidation()
    before = float_state(failing)
    with pytest.raises(RuntimeError, match="on purpose"):
        analyze(federated, failing, data())
    check_usable(failing, before)


def test_a_second_fit_works_after_one_that_failed(tmp_path):
    failed, fresh = Interrupted(), Lent()
    fresh.load_state_dict(failed.state_dict())
    federated = trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        federated.fit(failed, data())
    failed.training_step = lambda batch, batch_idx: Module.training_step(failed, batch, batch_idx)
    failed.load_state_dict(fresh.state_dict())
    again = federated.fit(failed, data())
    assert same(again.server.params, trainer(tmp_path).fit(fresh, data()).server.params)


def test_what_was_attached_before_is_attached_again(tmp_path):
    module = Lent()
    plain = L.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    module.trainer = plain
    trainer(tmp_path, max_rounds=1).fit(module, data())
    assert module.trainer is plain


def test_a_toggled_optimizer_of_a_failing_client_leaves_nothing_frozen(tmp_path):
    class Toggling(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.trained = []

        def training_step(self, batch, batch_idx):
            self.trained.append([p.requires_grad for p in self.parameters()])
            self.toggle_optimizer(self.optimizers()[0])
            raise RuntimeError("between toggle and untoggle")

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 2)]

    module = Toggling()
    with pytest.raises(RuntimeError, match="between toggle and untoggle"):
        trainer(tmp_path, max_rounds=1).fit(module, data())
    assert module.trained == [[True] * 4] * 2
    assert all(p.requires_grad for p in module.parameters())


def test_gradients_of_an_algorithm_reach_a_closure(tmp_path):
    class ByHand(Module):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer_closure()
            optimizer.step()

    found = []
    for cls in (Module, ByHand):
        torch.manual_seed(0)
        found.append(trainer(tmp_path, FedProx(0.5), max_rounds=1).fit(cls(), data()).server.params)
    torch.manual_seed(0)
    assert same(*found)
    assert not same(found[0], trainer(tmp_path, max_rounds=1).fit(Module(), data()).server.params)


# ---- compiled models -----------------------------------------------------------------------------


class Forward(Lent):
    """Goes through its own forward, which is what `torch.compile` compiles."""

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Backend:
    """Compiles nothing, and counts how often it is asked to."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph


def test_a_compiled_model_is_unwrapped_and_trained_compiled(tmp_path):
    torch._dynamo.reset()
    backend, plain = Backend(), Forward()
    module = Forward()
    module.load_state_dict(plain.state_dict())
    federated = trainer(tmp_path / "compiled", max_rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(module, backend=backend)
        reached = federated.fit(compiled, data()).server.params
    assert backend.graphs > 0
    assert same(reached, trainer(tmp_path / "plain", max_rounds=1).fit(plain, data()).server.params)
    measured = federated.test(compiled, data())
    assert measured == federated.test(module, data())
    check_usable(module, None)


def test_a_callback_that_fails_before_all_else_leaves_the_model_as_it_was(tmp_path):
    callback, module = Callback(), Forward()
    callback.around = lambda trainer, stage: 1 / 0
    compiled = torch.compile(module, backend=Backend())
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[callback]).fit(compiled, data())
    assert not is_compiled(module)


def test_a_trainer_that_is_at_work_begins_nothing_else(tmp_path):
    """Which would be its session from then on, and take the layers of a model that is lent."""
    found = []

    class Measures(Callback):
        def on_round_end(self, trainer, metrics):
            found.append(trainer.session.evaluate("val")["val/loss"])
            with pytest.raises(ValueError, match="the trainer is at work, and cannot begin"):
                trainer.validate(Lent(), data())

    federated = trainer(tmp_path, callbacks=[Measures()], max_rounds=2)
    federated.fit(Lent(), data())
    assert found == [row["val/loss"] for row in federated.run.history]
    assert federated.server.round == 2


def test_what_wraps_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be a LightningModule, got Linear"):
        trainer(tmp_path).fit(torch.compile(nn.Linear(2, 2)), data())  # type: ignore[arg-type]


def test_a_compiled_part_counts_as_compiled(tmp_path):
    part, itself, whole, plain = (Forward() for _ in range(4))
    part.net = torch.compile(part.net, backend=Backend())
    itself.compile(backend=Backend())
    loan = Loan(torch.compile(whole, backend=Backend()), data())
    assert [is_compiled(module) for module in (part, itself, whole, plain)] == [
        True,
        True,
        True,
        False,
    ]
    loan.give_back()
    assert not is_compiled(whole)
