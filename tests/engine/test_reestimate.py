"""`trainer.reestimate_norm`: the global model is evaluated with BatchNorm statistics of its own, at
each width.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bhfl.algorithms import Local
from bhfl.engine import FederatedTrainer
from tests.federation import Client, Net, fake, fit, same


class Slow(Client):
    """Norms that hardly move in a round, as those of torchvision's MobileNet."""

    def __init__(self) -> None:
        super().__init__(Net(batch_norm=True))
        self.net[1].momentum = 0.001


OPTIONS = {"module": Slow, "max_rounds": 2, "local_epochs": 1}


def data(**options):
    return fake(160, **{"holdout": 32, **options})


def rows(trainer):
    return [{k: v for k, v in row.items() if k != "time/round_s"} for row in trainer.run.history]


@pytest.mark.filterwarnings("ignore:BatchNorm net.1 has momentum")
def test_a_model_whose_statistics_never_arrive_is_measured_right(tmp_path):
    plain = fit(tmp_path / "plain", data=data(), **OPTIONS)
    fitted = fit(tmp_path / "fitted", data=data(), reestimate_norm=True, **OPTIONS)
    assert same(plain.server.params, fitted.server.params)  # training is as before
    losses = [run.run.history[-1]["val/loss_avg"] for run in (plain, fitted)]
    assert losses[1] < 0.9 * losses[0]
    assert fitted.run.history[-1]["val/acc_avg"] > plain.run.history[-1]["val/acc_avg"]


def test_resumed_runs_tests_and_the_best_checkpoint_measure_the_same(tmp_path):
    whole = fit(tmp_path / "whole", data=data(), reestimate_norm=True, **OPTIONS)
    fit(tmp_path / "part", data=data(), reestimate_norm=True, **{**OPTIONS, "max_rounds": 1})
    part = fit(tmp_path / "part", data=data(), reestimate_norm=True, ckpt_path="last", **OPTIONS)
    assert rows(part) == rows(whole)
    settings = {
        "logger": False,
        "default_root_dir": str(tmp_path / "whole"),
        "devices": 1,
        "reestimate_norm": True,
    }
    again = FederatedTrainer({8: 2, 32: 2}, **settings).validate(Slow(), data(), ckpt_path="last")
    assert again == {key: value for key, value in whole.run.history[-1].items() if key in again}
    assert "val/acc_int8" in again


def test_the_module_comes_back_with_the_statistics_it_was_measured_with(tmp_path):
    trainer = FederatedTrainer(
        {8: 1, 32: 1}, max_rounds=1, logger=False, default_root_dir=str(tmp_path), devices=1,
        reestimate_norm=True,
    )  # fmt: skip
    module, given = Slow(), data()
    trainer.fit(module, given)
    x = torch.cat([batch[0] for batch in given.holdout_batches()])
    assert torch.allclose(module.net[1].running_mean, module.net[0](x).mean((0, 2, 3)), atol=1e-5)
    assert float(module.net[1].momentum) == 0.001


@pytest.mark.parametrize("norm", ["group", "average"])
def test_each_width_has_its_own_statistics(tmp_path, norm):
    means: dict[str, float] = {}

    class Looks(Slow):
        def test_step(self, batch, batch_idx):
            means[self.net[0].spec.label] = float(self.net[1].running_mean.sum())
            return super().test_step(batch, batch_idx)

    options = {**OPTIONS, "module": Looks, "max_rounds": 1}
    fit(
        tmp_path,
        data=data(),
        clients={"ternary": 2, 32: 2},
        reestimate_norm=True,
        norm=norm,
        **options,
    )
    assert means.keys() == {"ternary", "float32"}
    assert means["ternary"] != means["float32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": data(holdout=0)}, "set data.holdout"),
        ({"module": Client}, "Client has none"),
        ({"algorithm": Local()}, "Local keeps none"),
        ({"norm": "local"}, "trainer.norm: local"),
        ({"reestimate_norm": 1}, "reestimate_norm must be true or false, got 1"),
    ],
)
def test_what_it_cannot_do_is_refused_before_a_folder_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", **{"data": data(), "reestimate_norm": True, **OPTIONS, **options})
    assert not (tmp_path / "run").exists()


def test_a_last_batch_of_one_sample_is_left_out(tmp_path):
    class Flat(Client):
        def __init__(self):
            super().__init__(
                nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
            )

    given = fake(160, holdout=17, eval_batch_size=16)
    trainer = fit(tmp_path, module=Flat, data=given, max_rounds=1, reestimate_norm=True)
    assert trainer.run.history[-1]["clients/ok"] == 4
