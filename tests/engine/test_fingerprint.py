"""What a run was told is known from its start, from Python and from the command line, and is what
resuming goes by.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from bhfl.algorithms import FedAvg, FedLQ, FedProx, ProWD
from bhfl.comm.network import SimulatedNetwork
from bhfl.engine import Availability, FederatedTrainer
from bhfl.engine.checkpoint import CheckpointError
from bhfl.engine.fingerprint import fingerprint, model_options
from bhfl.engine.resume import check_told
from bhfl.models import Classifier
from bhfl.settings import MODEL_ROLES, MUST_STAY, Role
from bhfl.told import differences, told_of
from tests.engine.hand_made import HandMade, Module, points
from tests.federation import CLASSES, SHAPE, Client, fake, fit


def told(trainer) -> dict[str, Any]:
    """``settings.json`` of a run."""
    return json.loads((trainer.run.folder / "settings.json").read_text())


def of_a_run(folder: Path, **options: Any) -> dict[str, Any]:
    return told_of(told(fit(folder, max_rounds=1, **options)), Role)


def test_it_is_written_before_the_first_round(tmp_path):
    class Stopped(FedAvg):
        def server_update(self, server, aggregate, rng):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Stopped())
    found = json.loads((tmp_path / "bhfl" / "version_0" / "settings.json").read_text())
    assert set(found) == {role.value for role in Role}
    assert found["result"]["algorithm"].endswith("Stopped")
    assert found["task"]["clients"] == [
        {"bits": "int8", "count": 2},
        {"bits": "float32", "count": 2},
    ]
    assert found["length"] == {
        "trainer.max_rounds": 3,
        "trainer.min_delta": 0.0,
        "trainer.patience": None,
    }
    assert found["result"]["trainer.seed"] == 0
    assert (found["task"]["data"], found["task"]["data.num_train"]) == ("bhfl.data.FakeImages", 64)


def test_every_option_of_the_trainer_is_there_once(tmp_path):
    trainer = fit(tmp_path, max_rounds=1)
    names = [name for name, _, _ in trainer.settings.options()]
    keys = [key for options in told(trainer).values() for key in options]
    assert len(keys) == len(set(keys))
    for name in names:
        assert (name if name in ("clients", "algorithm") else f"trainer.{name}") in keys


# ---- files


LINKS = "client,round,uplink_bps,downlink_bps\n0,1,1e6,1e6\n1,1,1e6,1e6\n"
EVENTS = "client,round,event,part\n0,1,dropout,\n"


class Streets(SimulatedNetwork):
    """One that names its file in words of its own."""

    def __init__(self, file):
        super().__init__(trace=file)


def test_a_trace_counts_whatever_a_class_of_the_users_own_calls_it(tmp_path):
    (tmp_path / "links.csv").write_text(LINKS)
    trainer = FederatedTrainer({8: 2}, network=Streets(tmp_path / "links.csv"), logger=False)
    told = {}
    for group in fingerprint(trainer.settings, fake(), {}).values():
        told |= group
    assert told["trainer.network.file"] == str(tmp_path / "links.csv")
    assert len(told["trainer.network.trace.sha256"]) == 64


@pytest.mark.parametrize(
    ("option", "make", "text", "other"),
    [
        ("network", SimulatedNetwork, LINKS, LINKS.replace("1,1,1e6", "1,1,2e6")),
        ("availability", Availability, EVENTS, EVENTS.replace("dropout", "loss")),
    ],
)
def test_a_trace_is_its_content_wherever_it_lies(tmp_path, option, make, text, other):
    found = []
    for name, content in (("trace.csv", text), ("copy.csv", text), ("trace.csv", other)):
        (tmp_path / name).write_text(content)
        trainer = FederatedTrainer({8: 2}, **{option: make(trace=tmp_path / name)}, logger=False)
        found.append(fingerprint(trainer.settings, fake(), {}))
    check_told("it", found[0], found[1])
    key = f"trainer.{option}.trace"
    assert found[0]["machine"][key] == str(tmp_path / "trace.csv")
    message = rf"other options \(old -> new\):\n  {key}.sha256: '\w{{64}}' -> '\w{{64}}'$"
    with pytest.raises(CheckpointError, match=message):
        check_told("it", found[0], found[2])


# ---- algorithms


@dataclass
class Tuning:
    """Options of an option."""

    rate: float = 0.1


class Own(FedAvg):
    """A method whose public attributes are its options, and that keeps what it meets."""

    def __init__(self, mu: float = 0.5, tuning: Tuning | None = None, **more: Any) -> None:
        self.mu = mu
        self.tuning = tuning or Tuning()
        self.more = more

    def setup(self, context):
        self.threads = torch.get_num_threads()
        self.tuning.rate += 1
        self.mu *= 2


@dataclass
class Plain(FedAvg):
    """A method whose constructor is made for it."""

    mu: float = 0.5
    tuning: Tuning = field(default_factory=Tuning)


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (lambda: Own(), lambda: Own(0.25), r"algorithm\.mu: 0\.5 -> 0\.25"),
        (
            lambda: Own(tuning=Tuning()),
            lambda: Own(tuning=Tuning(0.2)),
            r"algorithm\.tuning\.rate: 0\.1 -> 0\.2",
        ),
        (lambda: Own(kind="a"), lambda: Own(kind="b"), r"algorithm\.kind: 'a' -> 'b'"),
        (
            lambda: Plain(tuning=Tuning()),
            lambda: Plain(tuning=Tuning(0.2)),
            r"algorithm\.tuning\.rate: 0\.1 -> 0\.2",
        ),
        (lambda: FedProx(0.1), lambda: FedProx(0.2), r"algorithm\.mu: 0\.1 -> 0\.2"),
    ],
)
def test_arguments_tell_algorithms_apart(tmp_path, first, second, line):
    fit(tmp_path, first(), max_rounds=1)
    fit(tmp_path, first(), ckpt_path="last", max_rounds=2)
    with pytest.raises(CheckpointError, match=line):
        fit(tmp_path, second(), ckpt_path="last")


@pytest.mark.parametrize("make", [ProWD, FedLQ])
def test_what_a_method_meets_in_its_set_up_is_no_option(tmp_path, make):
    """Among it the number of threads, of which a resumed run is warned."""
    options = {"data": fake(300, holdout=128), "clients": {4: 2, 32: 2}, "local_steps": 1}
    options["module"] = partial(Classifier, "cnn", CLASSES, SHAPE)
    fit(tmp_path, make(), max_rounds=1, **options)
    with pytest.warns(UserWarning, match=r"trainer\.threads: 1 -> 2; the last bits"):
        trainer = fit(tmp_path, make(), max_rounds=2, ckpt_path="last", threads=2, **options)
    assert trainer.server.round == 2
    assert told(trainer)["numerics"]["trainer.threads"] == 2


# ---- roles


def test_a_run_goes_on_with_another_length_and_other_outputs(tmp_path):
    fit(tmp_path, max_rounds=1)
    options = {"patience": 9, "keep_checkpoints": 1, "evaluate_clients": "none", "threads": 1}
    trainer = fit(tmp_path, ckpt_path="last", name="bhfl", max_failed_rounds=9, **options)
    assert trainer.server.round == 3
    assert told(trainer)["length"]["trainer.patience"] == 9


def test_the_memory_order_is_numerics(tmp_path):
    fit(tmp_path, max_rounds=1, channels_last=False)
    with pytest.warns(UserWarning, match=r"trainer\.channels_last: False -> True"):
        fit(tmp_path, ckpt_path="last", channels_last=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"mode": "min"}, r"trainer\.mode: 'max' -> 'min'"),
        ({"monitor": "val/loss_avg"}, r"trainer\.monitor: "),
        ({"data": fake(drop_last=True)}, r"data\.drop_last: False -> True"),
        ({"data": fake(eval_batch_size=3)}, r"data\.eval_batch_size: 256 -> 3"),
    ],
)
def test_a_run_does_not_go_on_with_another_choice_or_result(tmp_path, change, line):
    fit(tmp_path, max_rounds=1)
    with pytest.raises(CheckpointError, match=line):
        fit(tmp_path, ckpt_path="last", **change)


def test_data_may_be_fetched_in_another_way(tmp_path):
    fit(tmp_path, max_rounds=1)
    assert fit(tmp_path, ckpt_path="last", data=fake(num_workers=1)).server.round == 3


# ---- data and models


def test_a_data_module_of_another_class_has_what_is_known(tmp_path):
    data = HandMade([points(6)], held_out=points(4, 1))
    found = of_a_run(tmp_path, clients={32: 1}, module=Module, data=data)
    assert found["data"] == "tests.engine.hand_made.HandMade"
    assert found["data.batch_size"] == 4
    assert "data.held_out" not in found


class Saved(Client):
    """A model that has saved its hyper-parameters."""

    def __init__(self, width: int = 3, momentum: float = 0.5) -> None:
        super().__init__(momentum=momentum)
        self.save_hyperparameters()


def test_a_model_is_its_class_and_what_it_trains_with(tmp_path):
    found = of_a_run(tmp_path, module=Saved)
    assert found["model"] == f"{__name__}.Saved"
    assert (found["model.width"], found["model.momentum"]) == (3, 0.5)
    assert found["model.optimizer"] == "torch.optim.SGD"
    assert found["model.optimizer.momentum"] == 0.5
    assert found["model.num_parameters"] == sum(p.numel() for p in Saved().parameters())


def test_another_learning_rate_is_another_run(tmp_path):
    def slow():
        model = Client()
        model.lr /= 2
        return model

    fit(tmp_path, max_rounds=1)
    with pytest.raises(CheckpointError, match=r"model\.optimizer\.lr: "):
        fit(tmp_path, ckpt_path="last", module=slow)


def test_what_a_model_has_from_its_data_tells_no_run_from_another():
    model = Classifier("cnn", num_classes=CLASSES, input_shape=SHAPE)
    options = model_options(model, {"optimizer": None})
    assert (options["class_path"], options["init_args"]["net"]) == ("bhfl.models.Classifier", "cnn")
    assert MODEL_ROLES["num_classes"] is MODEL_ROLES["input_shape"] is Role.MACHINE


def test_optimizers_that_cannot_be_made_yet_are_not_told(tmp_path):
    class Late(Client):
        def configure_optimizers(self):
            if self.trainer.global_step == 0 and not self.trainer.optimizers:
                self.calls = getattr(self, "calls", 0) + 1
                if self.calls == 1:
                    raise RuntimeError("not yet")
            return super().configure_optimizers()

    assert "model.optimizer" not in of_a_run(tmp_path, module=Late)


def test_what_loggers_and_callbacks_were_made_with_is_not_written(tmp_path):
    """It may be secret, and no run depends on it."""
    logger = CSVLogger(str(tmp_path / "logs"), name="secret")
    text = json.dumps(told(fit(tmp_path, max_rounds=1, logger=logger)))
    assert "secret" not in text
    assert "lightning.pytorch.loggers.CSVLogger" in text


# ---- checkpoints


def test_a_checkpoint_outside_of_any_folder_goes_on(tmp_path):
    trainer = fit(tmp_path / "a", FedProx(0.1), max_rounds=1)
    shutil.copy(next(trainer.run.checkpoints.glob("round*")), tmp_path / "moved.ckpt")
    shutil.rmtree(tmp_path / "a")
    trainer = fit(tmp_path / "b", FedProx(0.1), ckpt_path=str(tmp_path / "moved.ckpt"))
    assert trainer.server.round == 3
    with pytest.raises(CheckpointError, match=r"algorithm\.mu: 0\.1 -> 0\.2"):
        fit(tmp_path / "c", FedProx(0.2), ckpt_path=str(tmp_path / "moved.ckpt"))


def test_runs_that_are_alike_are_told_alike(tmp_path):
    def made(folder):
        L.seed_everything(0, verbose=False)
        return told(fit(tmp_path / folder, ProWD(), {32: 2}, max_rounds=1))

    assert differences(made("a"), made("b"), MUST_STAY) == []
