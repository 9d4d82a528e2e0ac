"""A mean that knows how much of the fleet it is of."""

from typing import TYPE_CHECKING

from bhfl.engine.aggregate import WeightedMean
from bhfl.engine.types import Params

# A small device trains with torch alone, so Lightning is imported for type checks only.
if TYPE_CHECKING:
    from lightning.fabric import Fabric

SHARE = "share"
"""Key of the share among the means."""


class ShareMean(WeightedMean):
    """A `WeightedMean`, and the weight of the clients that it is of as a share of the fleet's.

    Args:
        like: What each client sends.
        whole: The weight of all clients.
    """

    def __init__(self, like: Params, whole: float) -> None:
        super().__init__(like)
        self.whole = whole

    def reduce(self, fabric: "Fabric") -> Params | None:
        """The means, and the share as a float64 scalar; None where there was no client."""
        means = super().reduce(fabric)
        return None if means is None else {**means, SHARE: self.weight / self.whole}
