"""Local training, the baseline without communication."""

from collections.abc import Mapping

from torch import Tensor

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.types import ServerState


class Local(Algorithm):
    """Every client trains its own model at its own bits and sends nothing; all start from the same
    weights.

    A group's accuracy is the mean over its clients' models. A client that has lost its model is
    refused: one begun anew would have learned for fewer rounds than the row says.
    """

    communicates = False

    def expected(self, server: ServerState) -> Mapping[str, Tensor]:
        """Nothing is sent."""
        return {}
