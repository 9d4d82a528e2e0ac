"""Histograms of the global model's weights: they show how naive averaging lets float32 weights
collapse onto the levels of low-bit clients.
"""

from typing import Any

from lightning.fabric.loggers import Logger, TensorBoardLogger

from bhfl.checks import checked, count
from bhfl.engine.callback import Callback

_BINS = 200


class WeightHistograms(Callback):
    """Writes one histogram per weight tensor (two dimensions or more) to TensorBoard.

    Args:
        every_n_rounds: Rounds between histograms; 0 writes none.

    Raises:
        ValueError: `every_n_rounds` is negative.
    """

    def __init__(self, every_n_rounds: int = 1) -> None:
        name = "WeightHistograms.every_n_rounds"
        self.every_n_rounds = checked(name, every_n_rounds, count(0))

    def on_round_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
        """Write the histograms of this round."""
        if not self.every_n_rounds or metrics["round"] % self.every_n_rounds:
            return

        def write(logger: Logger) -> None:
            if not isinstance(logger, TensorBoardLogger):
                return
            for name, tensor in trainer.server.params.items():
                if tensor.ndim >= 2 and tensor.numel():
                    tag = f"weights/{name}"
                    logger.experiment.add_histogram(tag, tensor, metrics["round"], bins=_BINS)

        # a logger that fails is left out from then on, and the run goes on
        trainer.run.loggers.each(write)
