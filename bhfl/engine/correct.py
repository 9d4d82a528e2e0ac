"""Which test samples the models of a run were right about: ``correct.json`` of a run folder.

Methods that were tested on the same samples can then be compared sample by sample, as the bootstrap
of `bhfl report` does.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ZERO = np.uint8(ord("0"))
TOLD = "correct"
"""What a test step calls the tensor of booleans ``[B]`` that says of which samples it was right."""


def told_by(output: Any) -> Tensor | None:
    """What a step returned of which samples were right; None where it does not say."""
    found = output.get(TOLD) if isinstance(output, Mapping) else None
    by_sample = isinstance(found, Tensor) and found.ndim == 1 and found.dtype == torch.bool
    return found if by_sample else None


def as_text(batches: Sequence[Tensor]) -> str:
    """The booleans of all batches as digits, 1 for right.

    >>> as_text([torch.tensor([True, False])])
    '10'
    """
    found = [(_ZERO + batch.cpu().numpy()).tobytes() for batch in batches]
    return b"".join(found).decode()


def packed(groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What ``correct.json`` holds.

    The number of a group's models that were right about a sample is written in binary: bit k of all
    samples' numbers is a plane, packed eight samples a byte, the first sample in the highest bit. A
    group has a single model where its clients share one, and then one plane says it all.

    Args:
        groups: The models that were measured for each bit group, each as a digit a sample, see
            `as_text`. All have the same number of samples.
    """
    samples = 0
    written: dict[str, Any] = {}
    for group, models in groups.items():
        rows = np.stack([np.frombuffer(model.encode(), np.uint8) - _ZERO for model in models])
        samples = rows.shape[1]
        right = rows.sum(axis=0, dtype=np.int64)
        planes = []
        for bit in range(len(models).bit_length()):
            plane = np.packbits((right >> bit & 1).astype(np.bool_))
            planes.append(base64.b64encode(plane.tobytes()).decode())
        written[group] = {"models": len(models), "planes": planes}
    return {"samples": samples, "groups": written}
