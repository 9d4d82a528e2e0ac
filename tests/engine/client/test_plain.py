"""The local steps of a plain `nn.Module`."""

from typing import Any

import pytest
import torch
from torch import nn

from bhfl.engine.client.alone import check_plain
from bhfl.engine.client.plain import PlainWorker, num_samples

X, Y = torch.zeros(6, 3), torch.zeros(6)


@pytest.mark.parametrize(
    "batch", [X, [X, Y], {"x": X, "y": Y}, {"id": "abc", "x": X}, {"views": [X, X], "y": Y}, (X,)]
)
def test_a_batch_has_as_many_samples_as_its_first_tensor_has_rows(batch: Any) -> None:
    assert num_samples(batch) == 6


class _Measured(nn.Module):
    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.found


def test_a_step_that_measures_returns_a_loss_or_numbers_by_name() -> None:
    def measured(found: Any, stage: Any = "val") -> dict[str, float]:
        return PlainWorker(_Measured(found)).evaluate([X, X[:2]], stage)

    assert measured(torch.tensor(3.0)) == measured({"loss": 3}) == {"loss": 3.0}
    with pytest.raises(ValueError, match="validation_step must return numbers by name, got None"):
        measured(None)
    with pytest.raises(ValueError, match="the method test_step where clients are measured, and _M"):
        measured(None, "test")


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning.core"])
def test_a_module_of_lightning_is_not_plain(package: str) -> None:
    """By either name of its package, of which one need not be installed."""
    made = type("LitNet", (nn.Module,), {"__module__": package})
    with pytest.raises(ValueError, match="LitNet is a LightningModule: give its network"):
        check_plain(made())


def test_an_expanded_tensor_takes_values() -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.ones(1).expand(3))
    PlainWorker(module).registered.put("scale", torch.arange(3.0))
    assert module.state_dict()["scale"].tolist() == [0, 1, 2]
