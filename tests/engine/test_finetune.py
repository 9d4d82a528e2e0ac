"""`trainer.finetune_epochs`: each client's model is evaluated after a while on its own data."""

from __future__ import annotations

import pytest
import torch

from bhfl.algorithms import FedPer, Local
from bhfl.engine.random import RandomKeys
from bhfl.engine.trainer import FederatedTrainer
from tests.engine.hand_made import HandMade, points
from tests.engine.hand_made import Module as Plain
from tests.federation import fit


class Module(Plain):
    """With a schedule that comes to a rate of zero, and a test."""

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.2)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: done < 2)]


def data(empty: bool = False):
    sizes = (8, 12, 0 if empty else 6)
    clients = [points(size, seed) for seed, size in enumerate(sizes)]
    return HandMade(clients, held_out=points(20, seed=9), shuffle=True)


def run(folder, algorithm=None, clients=None, empty=False, **options):
    options = {"max_rounds": 2, "monitor": "train/loss", "mode": "min", **options}
    module = options.pop("module", Module)
    return fit(folder, algorithm, clients or {32: 3}, module, data(empty), **options)


def rows(trainer, prefix=""):
    found = []
    for row in trainer.run.history:
        found.append({k: v for k, v in row.items() if k.startswith(prefix) and "time" not in k})
    return found


def loss(module, batch):
    with torch.no_grad():
        return float(module.training_step(batch, 0))


def finetuned(trainer, params, client, epochs):
    """The loss of a client's model after epochs of gradient descent, by a loop of its own."""
    given = data()
    module = Module()
    module.load_state_dict(params)
    rng = RandomKeys(trainer.settings.cohort.seed, trainer.server.round, client)
    for epoch in range(epochs):
        for batch in given.client_batches(client, rng, epoch):
            module.zero_grad()
            module.training_step(batch, 0).backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    # the schedule, begun anew, leaves the rate as it is in the first two epochs
                    parameter -= 0.2 * parameter.grad
    return loss(module, given.held_out)


def test_each_client_s_copy_of_the_global_model_is_trained_and_measured(tmp_path):
    trainer = run(tmp_path, finetune_epochs=2)
    row = trainer.run.history[-1]
    params = trainer.server.params
    losses = [finetuned(trainer, params, client, 2) for client in range(3)]
    assert row["val/loss_float32"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    module = Module()
    module.load_state_dict(params)
    assert row["val/loss"] == pytest.approx(loss(module, data().held_out), rel=1e-6)
    assert abs(row["val/loss"] - row["val/loss_float32"]) > 0.01


def test_a_schedule_that_follows_rounds_stays_where_it_begins(tmp_path):
    class WithPlateau(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.2)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val/loss"}

    trainer = run(tmp_path, finetune_epochs=2, module=WithPlateau, max_rounds=1)
    losses = [finetuned(trainer, trainer.server.params, client, 2) for client in range(3)]
    assert trainer.run.history[-1]["val/loss_float32"] == pytest.approx(sum(losses) / 3)


def test_nothing_is_left_of_it(tmp_path):
    runs = [run(tmp_path, clients={8: 1, 32: 2}, finetune_epochs=epochs) for epochs in (0, 1)]
    assert rows(runs[0], "train") == rows(runs[1], "train")
    for name, value in runs[0].server.params.items():
        assert torch.equal(value, runs[1].server.params[name])
    assert rows(runs[0], "val/loss_") != rows(runs[1], "val/loss_")
    assert not (runs[1].run.folder / "clients").exists()


@pytest.mark.parametrize("algorithm", [lambda: FedPer(["net.2"]), Local])
def test_a_client_with_a_model_of_its_own_goes_on_from_that(tmp_path, algorithm):
    trainer = run(tmp_path, algorithm(), finetune_epochs=1)
    losses = []
    for client in range(3):
        kept = trainer.session.store.load(client, 2)["staying"]
        losses.append(finetuned(trainer, {**trainer.server.params, **kept}, client, 1))
    found = trainer.run.history[-1]["val/loss_float32"]
    assert found == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_a_resumed_run_and_a_checkpoint_are_measured_alike(tmp_path):
    options = {"finetune_epochs": 1, "clients": {8: 1, 32: 2}, "empty": True}
    whole = run(tmp_path / "whole", **options)
    run(tmp_path / "part", **options, max_rounds=1)
    part = run(tmp_path / "part", **options, ckpt_path="last")
    assert rows(part) == rows(whole)
    options = {"logger": False, "default_root_dir": str(tmp_path / "whole"), "devices": 1}
    again = FederatedTrainer({8: 1, 32: 2}, finetune_epochs=1, **options)
    found = again.validate(Module(), data(empty=True), ckpt_path="last")
    assert found == {key: value for key, value in rows(whole)[-1].items() if key in found}
    assert "val/loss_int8" in found


def test_a_client_without_examples_is_measured_as_it_is(tmp_path):
    trainer = run(tmp_path, clients={32: 2, 8: 1}, empty=True, finetune_epochs=1)
    plain = run(tmp_path, clients={32: 2, 8: 1}, empty=True)
    assert rows(trainer, "val/loss_int8") == rows(plain, "val/loss_int8")
    assert rows(trainer, "val/loss_float32") != rows(plain, "val/loss_float32")


def test_a_client_that_cannot_train_is_measured_as_it_is(tmp_path):
    broken = data().clients[1][0]

    class Broken(Module):
        def training_step(self, batch, batch_idx):
            if (batch[0][:1] == broken).all(1).any():
                raise RuntimeError("a broken image")
            return super().training_step(batch, batch_idx)

    options = {"max_rounds": 1, "monitor": "train/loss", "mode": "min", "finetune_epochs": 1}
    told = r"client 1 could not train for trainer\.finetune_epochs, .*a broken image"
    with pytest.warns(UserWarning, match=told) as warned:
        trainer = fit(tmp_path, None, {32: 3}, Broken, data(), **options)
    # validated and tested, and told once
    assert sum("finetune_epochs" in str(one.message) for one in warned) == 1
    params = trainer.server.params
    losses = [finetuned(trainer, params, client, 1) for client in (0, 2)]
    module = Module()
    module.load_state_dict(params)
    losses.append(loss(module, data().held_out))
    found = trainer.run.history[-1]["val/loss_float32"]
    assert found == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_the_module_is_measured_between_the_rounds_as_ever(tmp_path):
    """What it is told of its place in the run does not say that it was trained for it."""
    places = []

    class Telling(Module):
        def validation_step(self, batch, batch_idx):
            places.append((self.current_epoch, self.global_step))
            super().validation_step(batch, batch_idx)

    for epochs in (0, 1):
        fit(
            tmp_path, None, {32: 3}, Telling, data(), max_rounds=1, monitor="train/loss",
            mode="min", finetune_epochs=epochs,
        )  # fmt: skip
    val, test = places[:2]
    assert places[2:] == [*4 * [val], *4 * [test]]
