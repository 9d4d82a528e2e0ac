"""Methods that tell what is trained from buffers of the module's own, which are averaged."""

from collections.abc import Sequence

from torch import nn

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.types import Client


class OfTrained(Algorithm):
    """FedAvg that knows the names of the parameters that are trained."""

    def prepare(self, module: nn.Module, clients: Sequence[Client]) -> None:
        """Find what is trained."""
        named = module.named_parameters()
        self._trained = [name for name, parameter in named if parameter.requires_grad]
