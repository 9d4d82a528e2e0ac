"""The local steps of a plain `nn.Module`."""

from typing import Any

import pytest
import torch

from bhfl.engine.client.plain import num_samples

X, Y = torch.zeros(6, 3), torch.zeros(6)


@pytest.mark.parametrize(
    "batch", [X, [X, Y], {"x": X, "y": Y}, {"id": "abc", "x": X}, {"views": [X, X], "y": Y}, (X,)]
)
def test_a_batch_has_as_many_samples_as_its_first_tensor_has_rows(batch: Any) -> None:
    assert num_samples(batch) == 6
