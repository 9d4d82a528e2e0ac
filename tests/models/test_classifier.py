import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau as LightningPlateau
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from bhfl.models import Classifier

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*logging interval"
)


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(10, 1, 8, 8, generator=generator), torch.arange(10)
    return DataLoader(TensorDataset(images, labels), batch_size=5)


def make_trainer():
    return L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# every epoch is a bad one: each halves the rate
NEVER_GOOD = {"factor": 0.5, "patience": 0, "threshold": 1e9}


@pytest.mark.parametrize(
    ("make_scheduler", "interval", "expected"),
    [
        (None, "epoch", 0.05),
        (lambda optimizer: StepLR(optimizer, 1, gamma=0.5), "epoch", 0.025),
        (lambda optimizer: StepLR(optimizer, 1, gamma=0.5), "step", 0.0125),
        (lambda optimizer: CosineAnnealingLR(optimizer, T_max=2), "step", 0.0),
        (lambda optimizer: ReduceLROnPlateau(optimizer, **NEVER_GOOD), "epoch", 0.025),
        (lambda optimizer: LightningPlateau(optimizer, "val/acc", **NEVER_GOOD), "epoch", 0.025),
    ],
    ids=["none", "epoch", "step", "cosine", "plateau", "plateau of Lightning"],
)
def test_fits_under_a_trainer(loader, make_scheduler, interval, expected):
    model = Classifier("mlp", lr_scheduler=make_scheduler, lr_interval=interval)
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer()
    trainer.fit(model, loader, loader)
    assert trainer.global_step == 2
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)
    assert trainer.callback_metrics.keys() == {"val/loss", "val/acc"}


@pytest.mark.parametrize(
    ("make_scheduler", "monitor"),
    [
        (ReduceLROnPlateau, "val/loss"),
        (lambda optimizer: LightningPlateau(optimizer, "val/acc"), "val/acc"),
    ],
)
def test_plateau_names_what_it_follows(make_scheduler, monitor):
    config = Classifier(
        "mlp", lr_scheduler=make_scheduler, lr_interval="step"
    ).configure_optimizers()
    assert config["lr_scheduler"]["monitor"] == monitor
    assert config["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize(("run", "stage"), [(L.Trainer.validate, "val"), (L.Trainer.test, "test")])
def test_logged_metrics_are_means_over_examples(loader, run, stage):
    model = Classifier("cnn", label_smoothing=0.1)
    uneven = DataLoader(loader.dataset, batch_size=7)
    metrics = run(make_trainer(), model, uneven, verbose=False)[0]
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        logits = model.eval()(images)
    assert metrics[f"{stage}/loss"] == pytest.approx(
        F.cross_entropy(logits, labels).item(), rel=1e-5
    )
    assert metrics[f"{stage}/acc"] == pytest.approx(
        (logits.argmax(1) == labels).float().mean().item()
    )


def test_predicts_logits_with_and_without_labels(loader):
    model = Classifier("mlp")
    images, _ = loader.dataset.tensors
    logits = torch.cat(make_trainer().predict(model, loader))
    unlabelled = torch.cat(make_trainer().predict(model, DataLoader(images, batch_size=5)))
    assert logits.shape == (10, 10)
    assert torch.equal(logits, unlabelled)


def test_training_step_returns_the_smoothed_loss(loader):
    model = Classifier("mlp", label_smoothing=0.3)
    images, labels = loader.dataset.tensors
    loss = model.training_step((images, labels), 0)
    assert torch.equal(loss, F.cross_entropy(model(images), labels, label_smoothing=0.3))
    assert loss.requires_grad


def test_default_optimizer():
    optimizer = Classifier("mlp").configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.05, 0.9)


def test_named_network_gets_its_arguments():
    model = Classifier("vgg7", 5, (3, 16, 16), {"width": 8}, norm="batch")
    assert model.net.features[0].weight.shape == (8, 3, 3, 3)
    assert isinstance(model.net.features[1], nn.BatchNorm2d)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_any_module_is_a_net():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert Classifier(net).net is net


def test_deep_copy_is_equal_and_apart():
    model = Classifier("resnet8")
    twin = copy.deepcopy(model)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    assert not {id(parameter) for parameter in model.parameters()} & {
        id(parameter) for parameter in twin.parameters()
    }
    assert twin.configure_optimizers().param_groups[0]["params"][0] is next(twin.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"net": nn.Flatten(), "norm": "group"},
            "net_kwargs and norm are for a net given by name, got None and 'gro",
        ),
        (
            {"net": nn.Flatten(), "net_kwargs": {"a": 1}},
            r"net_kwargs and norm are for a net given by name, got \{'a'",
        ),
        (
            {"net_kwargs": {"norm": "batch"}},
            r"net_kwargs must leave norm to the arguments outside it, got \{'norm'",
        ),
        ({"lr_interval": "round"}, "lr_interval must be one of epoch, step, got 'round'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"net": "cnm"}, "net must be one of .* got 'cnm'; did you mean 'cnn'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**arguments)


def test_command_line_changes_one_value_of_the_default_optimizer():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Classifier, "model")
    argv = ["--model.net=mlp", "--model.optimizer.lr=0.1", "--model.lr_scheduler=StepLR"]
    parsed = parser.parse_args([*argv, "--model.lr_scheduler.step_size=3"])
    assert parsed.model.optimizer.init_args.lr == 0.1
    assert parsed.model.optimizer.init_args.momentum == 0.9
    assert "class_path: torch.optim.SGD" in parser.dump(parsed)
