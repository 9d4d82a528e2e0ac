"""What is trained beside the layers: biases, norms, and weights that cannot be quantised.

They are few, but they are float32: beside layers of two bits they can be a quarter of an upload.
With ``payload: delta`` their differences can be sent at 8 or 16 bits, as those of layers are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bhfl.algorithms.differences import qsgd
from bhfl.algorithms.feedback import forget_error, keep_error, with_error
from bhfl.engine.algorithm import LocalRun
from bhfl.engine.types import Params
from bhfl.quant import QuantizedTensor, packed_bytes
from bhfl.quant.spec import FLOAT_BITS


def check_side_bits(bits: int, payload: str) -> None:
    """ValueError where differences of what is no layer would be sent, and nothing else is one."""
    if bits < FLOAT_BITS and payload != "delta":
        raise ValueError(
            f"FedLQ.side_bits below 32 needs FedLQ.payload: delta, got {payload}: running sums of "
            "rounded biases would lose what they learn"
        )


@dataclass(frozen=True)
class Sides:
    """Sends what is no layer.

    Args:
        names: What it is called.
        bits: Those of a difference; 32 for values in float32.
        feedback: Whether what is left out of a difference is in the next one.
    """

    names: Sequence[str] = ()
    bits: int = FLOAT_BITS
    feedback: bool = False

    def _is_coded(self, x: Tensor) -> bool:
        """Whether codes and their scale take less than values."""
        if self.bits == FLOAT_BITS:
            return False
        return packed_bytes(x.numel(), self.bits) + 4 < 4 * x.numel()

    def coded(self, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
        """Those of some tensors that travel as codes, of the size that they then have."""
        one = torch.ones(())
        return {
            name: QuantizedTensor(tensors[name], one, self.bits)
            for name in self.names
            if name in tensors and self._is_coded(tensors[name])
        }

    def send(
        self,
        run: LocalRun,
        update: dict[str, Tensor | QuantizedTensor],
        generator: torch.Generator | None,
    ) -> Params:
        """Put into a client's update what is sent of it.

        Args:
            run: The client's work in this round.
            update: It has the values.
            generator: Draws the rounding; None with `feedback`.

        Returns:
            The differences that were to be sent, with what was left out of the last ones.
        """
        moves: Params = {}
        for name in self.names:
            value = update.get(name)
            if not isinstance(value, Tensor):
                continue
            move = moves[name] = with_error(run, name, run.received[name] - value)
            if self._is_coded(value):
                update[name] = codes = qsgd(move, self.bits, "linf", generator)
                if self.feedback:
                    keep_error(run, name, move, codes.dequantize())
            elif forget_error(run, name):
                update[name] = run.received[name] - move
        return moves
