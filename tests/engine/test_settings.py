"""Options are checked before any work is done, all at once, each by name, rule and value."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

from bhfl.engine.trainer import FederatedTrainer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rounds": 0}, r"max_rounds must be an integer from 1 to 2,147,483,648, got 0"),
        ({"max_rounds": True}, "max_rounds must be an integer from 1 .* got True"),
        ({"max_rounds": None}, "max_rounds must be an integer from 1 .* got None"),
        ({"local_epochs": 1.5}, r"local_epochs must be an integer from 1 .* got 1\.5"),
        ({"local_steps": 0}, "local_steps must be an integer from 1"),
        ({"max_failed_rounds": -1}, "max_failed_rounds must be an integer from 0"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4,294,967,295, got 4294967296"),
        ({"patience": 0}, "patience must be an integer from 1"),
        ({"threads": 0}, "threads must be an integer from 1"),
        ({"threads": 10**5}, "threads must be at most .* 16 for each CPU here, got 100000"),
        (
            {"devices": "100000", "accelerator": "cpu"},
            "devices must be at most .* 16 for each CPU here, got 100000",
        ),
        ({"name": "a\0b"}, r"name must be text without NUL that UTF-8 can write, got 'a\\x00b'"),
        ({"name": "a\ud800"}, "name must be text without NUL that UTF-8 can write"),
        (
            {"name": "a/" + "b" * 256},
            "name must have at most 3000 bytes, and 255 between two slashes, got 258 bytes",
        ),
        ({"default_root_dir": "é" * 128}, "default_root_dir must have at most .* got 256 bytes"),
        (
            {"server_optimizer": lambda p: torch.optim.SGD(p, -1)},
            "server_optimizer cannot be used: .* rate: -1",
        ),
        ({"server_optimizer": torch.optim.LBFGS}, "server_optimizer cannot be used: .*closure"),
        (
            {"server_optimizer": lambda params: torch.optim.SGD(params, 1.0, maximize=True)},
            "server_optimizer must go down to the clients' mean, got maximize: true",
        ),
        (
            {"finetune_epochs": -1},
            "finetune_epochs must be an integer from 0 to 2,147,483,648, got -1",
        ),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be an integer from 1"),
        ({"sampling": "random"}, "must be one of stratified, uniform, poisson, got"),
        ({"lr_schedule": "go on"}, "lr_schedule must be one of continue, restart"),
        ({"weights": "equal"}, "weights must be one of samples, uniform"),
        ({"norm": "none"}, "norm must be one of average, local, group"),
        ({"mode": "maximum"}, "mode must be one of max, min"),
        (
            {"precision": "64"},
            "precision must be one of 32, 32-true, 16-mixed, bf16-mixed, got '64'",
        ),
        ({"gradient_clip_val": 0}, "gradient_clip_val must be positive and finite, got 0"),
        (
            {"gradient_clip_val": float("nan")},
            "gradient_clip_val must be positive and finite, got nan",
        ),
        ({"name": " "}, "name must not be empty, got ' '"),
        ({"monitor": ""}, "monitor must not be empty"),
        (
            {"clients_per_round": 1.5},
            r"clients_per_round must be a count, or a fraction in \(0, 1\], got 1\.5",
        ),
        ({"clients_per_round": 0.0}, "clients_per_round must be a count, or a fraction"),
        ({"clients_per_round": float("nan")}, "clients_per_round must be a count, or a fraction"),
        ({"clients_per_round": 0}, "clients_per_round must be a count, or a fraction"),
        (
            {"clients_per_round": 5},
            "clients_per_round must be at most 4, the number of clients, got 5",
        ),
        (
            {"min_clients": 3, "clients_per_round": 2},
            "min_clients must be at most 2, the clients of a round, got 3",
        ),
        ({"num_clients": 5}, "num_clients must be 4, the sum of the counts in clients, got 5"),
        ({"clients": {7.5: 1}}, r"clients\[0\]"),
        ({"strategy": "fsdp"}, "strategy must be auto, ddp or a DDPStrategy, got 'fsdp'"),
        (
            {"strategy": SingleDeviceStrategy()},
            "strategy must be auto, ddp or a DDPStrategy, got <",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FederatedTrainer(**{"clients": {8: 2, 32: 2}, "devices": 1, **options})


def test_all_problems_at_once():
    with pytest.raises(ValueError) as error:
        FederatedTrainer({8: 0}, max_rounds=0, norm="no", gradient_clip_val=-1.0)
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("options", [{"devices": 2}, {"devices": 1, "strategy": "ddp"}])
def test_a_notebook_is_told_what_to_do_for_several_processes(options, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert FederatedTrainer({32: 2}, devices=1, accelerator="cpu").fabric.world_size == 1
    with pytest.raises(ValueError, match=r"devices must be 1 in a notebook .* call `python FILE`"):
        FederatedTrainer({32: 2}, accelerator="cpu", **options)


@pytest.mark.parametrize(("devices", "strategy"), [(2, "auto"), (1, "ddp"), (2, DDPStrategy())])
def test_several_devices_are_processes_that_meet_in_collectives(devices, strategy):
    trainer = FederatedTrainer(
        {32: 2},
        devices=devices,
        accelerator="cpu",
        strategy=strategy,
        timeout_seconds=77,
        logger=False,
    )
    assert isinstance(trainer.fabric.strategy, DDPStrategy)
    if isinstance(strategy, str):
        assert trainer.fabric.strategy._timeout.total_seconds() == 77
