"""The error that stops every client ends a run at once; what may pass does not."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess

import pytest
import torch

from bhfl.algorithms import FedAvg
from bhfl.engine import TooFewClientsError
from bhfl.engine.client.faults import fault_of
from tests.engine.hand_made import HandMade, Module, points
from tests.engine.test_processes import in_processes
from tests.federation import fit


class Failing(Module):
    """Raises `error` in the first step of every client."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def training_step(self, batch, batch_idx):
        raise self.error


class Misfit(Module):
    """A fault deep in a quantised layer, as of a batch of another shape."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0][:, :5], batch[1]), batch_idx)


def data(clients: int = 3, empty: int = 0) -> HandMade:
    return HandMade(
        [points(4, i) for i in range(clients - empty)] + [points(0)] * empty, held_out=points(4, 9)
    )


def train(folder, module, clients=3, algorithm=None, **options):
    options = {"data": data(clients), "max_rounds": 9, **options}
    return fit(folder, algorithm, clients={8: clients}, module=module, **options)


def test_rounds_that_draw_nobody_are_skipped_and_end_a_run_that_is_all_of_them(tmp_path):
    options = {"sampling": "poisson", "clients_per_round": 0.3, "max_rounds": 8}
    run = train(tmp_path / "some", Module, algorithm=FedAvg(), max_failed_rounds=8, **options)
    empty = [row["clients/ok"] == 0 for row in run.run.history]
    assert any(empty)
    assert not all(empty)
    options["clients_per_round"] = 1e-9
    with pytest.raises(TooFewClientsError, match="usable updates; last round drew 0 clients"):
        train(tmp_path / "none", Module, max_failed_rounds=3, **options)


def test_what_a_client_fails_with_is_told_on_one_short_line():
    error = RuntimeError("red \x1b[31m \udcff\nand " + "more " * 10_000)
    reason = fault_of(error, channels_last=False).reason
    assert reason.startswith(r"RuntimeError: red \x1b[31m \udcff\nand more")
    assert len(reason) <= 400


class Mute(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


def test_a_client_whose_error_cannot_say_what_it_is_fails_like_any_other(tmp_path):
    class Sometimes(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.current_epoch == 0:
                raise Mute
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="client 0 failed: Mute: its own text cannot be told"):
        trained = train(tmp_path, Sometimes, clients=1, max_rounds=2)
    assert [row["clients/ok"] for row in trained.run.history] == [0, 1]


def rounds(folder) -> int:
    """Those that were logged before the run ended."""
    rows = folder / "bhfl" / "version_0" / "rounds.jsonl"
    return len(rows.read_text().splitlines()) if rows.exists() else 0


@pytest.mark.parametrize("module", [lambda: Failing(TypeError("no such thing")), Misfit])
def test_the_same_error_in_all_clients_ends_the_run_at_once(tmp_path, module):
    with pytest.raises(
        TooFewClientsError, match=r"the same error in all 3 clients of round 1, client 0 failed"
    ) as told:
        train(tmp_path, module)
    assert "Traceback" in str(told.value)
    assert "in training_step" in str(told.value)
    assert rounds(tmp_path) == 0


def test_in_any_round_and_by_any_hook(tmp_path):
    class Breaks(FedAvg):
        def uplink(self, run):
            if run.round == 2:
                raise KeyError("net.3.weight")
            return super().uplink(run)

    with pytest.raises(TooFewClientsError, match=r"the same error in all 3 clients of round 3"):
        train(tmp_path, Module, algorithm=Breaks())
    assert rounds(tmp_path) == 2


def chained() -> Exception:
    error = ValueError("could not read")
    error.__cause__ = FileNotFoundError("sensor.npy")
    return error


PASSING = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    RuntimeError("DataLoader timed out after 5 seconds"),
    OSError(28, "No space left on device"),
    ConnectionResetError("gone"),
    TimeoutError(),
    concurrent.futures.TimeoutError(),
    subprocess.TimeoutExpired("curl", 3),
    chained(),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
def test_what_may_pass_is_waited_for(tmp_path, error):
    with pytest.raises(
        TooFewClientsError, match=r"2 rounds in a row had fewer than min_clients=1 usable updates"
    ):
        train(tmp_path, lambda: Failing(error), max_failed_rounds=1)


def test_a_file_beside_the_package_with_a_longer_name_is_a_user_s(tmp_path, monkeypatch):
    import bhfl.engine.client.faults as faults

    # as tests/ is beside it
    monkeypatch.setattr(faults, "_OURS", faults._OURS.replace("bhfl/", "test/"))
    with pytest.raises(TooFewClientsError, match=r"the same error in all 3 clients"):
        train(tmp_path, lambda: Failing(TypeError("no")))


class Different(FedAvg):
    """Clients whose errors are of different kinds, come from different lines, or come to some
    alone.
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def client_loss(self, run, batch, batch_idx):
        if self.how == "kinds":
            raise (KeyError if run.client.id else TypeError)("x")
        if self.how == "lines" and run.client.id:
            raise KeyError("x")
        if self.how == "lines" or run.client.id:
            raise KeyError("x")
        return super().client_loss(run, batch, batch_idx)


@pytest.mark.parametrize("how", ["kinds", "lines"])
def test_other_errors_in_other_clients_are_waited_for(tmp_path, how):
    with pytest.raises(TooFewClientsError, match=r"2 rounds in a row had fewer"):
        train(tmp_path, Module, algorithm=Different(how), max_failed_rounds=1)


def test_one_usable_update_is_enough(tmp_path):
    trainer = train(tmp_path, Module, algorithm=Different("some"), max_rounds=2)
    assert [row["clients/failed"] for row in trainer.run.history] == [2, 2]


def test_one_client_alone_proves_nothing(tmp_path):
    with pytest.raises(TooFewClientsError, match=r"2 rounds in a row had fewer"):
        train(tmp_path, lambda: Failing(TypeError("no")), clients=1, max_failed_rounds=1)


def test_clients_that_drop_out_are_no_error(tmp_path):
    class Asleep(FedAvg):
        def num_steps(self, run, planned):
            return 0 if run.round == 0 else planned

    trainer = train(tmp_path, Module, algorithm=Asleep(), max_rounds=2)
    assert [row["clients/ok"] for row in trainer.run.history] == [0, 3]


def test_clients_without_examples_are_not_asked(tmp_path):
    with pytest.raises(TooFewClientsError, match=r"the same error in all 2 clients"):
        train(tmp_path, lambda: Failing(TypeError("no")), data=data(3, empty=1))


def rank_of(folder, rank, world, port, case, options):
    """One of two processes, each with a client of its own."""

    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
    }
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
    os.environ |= {name: str(value) for name, value in names.items()}
    with pytest.raises(TooFewClientsError, match=r"the same error in all 2 clients of round 1"):
        train(
            folder,
            lambda: Failing(TypeError("no")),
            2,
            devices=world,
            accelerator="cpu",
            timeout_seconds=60,
        )


def test_clients_of_other_processes_count(tmp_path):
    in_processes(rank_of, tmp_path, 2, "", {})
