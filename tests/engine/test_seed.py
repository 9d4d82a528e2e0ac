"""The seed of a run: given to the trainer, or the one that `lightning.seed_everything` was
given.
"""

from __future__ import annotations

import lightning as L
import pytest

from bhfl.algorithms import FedAvg
from bhfl.engine import FederatedTrainer
from bhfl.engine.algorithm import LocalRun, Tensors
from bhfl.engine.checkpoint import CheckpointError
from tests.federation import Client, fake, fit, same


def test_without_a_number_it_is_zero() -> None:
    assert FederatedTrainer({8: 1}).settings.cohort.seed == 0


@pytest.mark.parametrize("number", [0, 7, 2**32 - 1])
def test_it_is_what_lightning_was_seeded_with(number: int) -> None:
    L.seed_everything(number, verbose=False)
    assert FederatedTrainer({8: 1}).settings.cohort.seed == number


def test_a_seed_of_its_own_wins() -> None:
    L.seed_everything(7, verbose=False)
    assert FederatedTrainer({8: 1}, seed=3).settings.cohort.seed == 3


def test_it_is_the_number_when_the_trainer_was_made() -> None:
    L.seed_everything(7, verbose=False)
    trainer = FederatedTrainer({8: 1})
    L.seed_everything(8, verbose=False)
    assert trainer.settings.cohort.seed == 7


@pytest.mark.parametrize(
    "text", ["", "auto", "-1", "1.0", "1e3", "4294967296", " 3", "٣", "9" * 5000]
)
def test_a_variable_that_is_no_seed_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", text)
    with pytest.raises(
        ValueError, match="PL_GLOBAL_SEED must be an integer from 0 to 4,294,967,295, got"
    ) as refused:
        FederatedTrainer({8: 1})
    assert "unset it" in str(refused.value)
    assert FederatedTrainer({8: 1}, seed=3).settings.cohort.seed == 3  # the remedy of the message


def test_seeding_lightning_alone_makes_runs_that_differ_in_every_draw(tmp_path) -> None:
    def run(number: int) -> tuple[FederatedTrainer, Client, list[int]]:
        L.seed_everything(number, verbose=False)
        cohorts: list[int] = []

        class Watched(FedAvg):
            def uplink(self, run: LocalRun) -> Tensors | None:
                cohorts.append(run.client.id)
                return super().uplink(run)

        options = {"max_rounds": 3, "clients_per_round": 2, "logger": False, "devices": 1}
        trainer = FederatedTrainer(
            {8: 4, 32: 4}, Watched(), default_root_dir=str(tmp_path), **options
        )
        model, data = Client(), fake()
        trainer.fit(model, data)
        return trainer, model, [*cohorts, data.partition_record()["sha256"]]

    runs = [run(number) for number in (0, 1, 2, 1)]
    assert len({str(draws) for _, _, draws in runs}) == 3
    assert len({draws[-1] for _, _, draws in runs}) == 3  # partitions
    assert len({str(draws[:-1]) for _, _, draws in runs}) == 3  # cohorts
    assert same(runs[1][0].server.params, runs[3][0].server.params)
    assert not same(runs[1][0].server.params, runs[2][0].server.params)


def test_a_resumed_run_must_have_the_same_number_wherever_it_came_from(tmp_path) -> None:
    fit(tmp_path, seed=3, max_rounds=1)
    L.seed_everything(3, verbose=False)
    assert fit(tmp_path, max_rounds=2, ckpt_path="last").server.round == 2
    L.seed_everything(4, verbose=False)
    with pytest.raises(CheckpointError, match=r"trainer\.seed: 3 -> 4"):
        fit(tmp_path, max_rounds=3, ckpt_path="last")
