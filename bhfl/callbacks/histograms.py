"""Histograms of the global model's weights, where the collapse of float32 weights onto low-bit
levels shows.
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
        params = trainer.server.params
        weights = {
            name: tensor for name, tensor in params.items() if tensor.ndim >= 2 and tensor.numel()
        }

        def write(logger: Logger) -> None:
            if isinstance(logger, TensorBoardLogger):
                for name, tensor in weights.items():
                    logger.experiment.add_histogram(
                        f"weights/{name}", tensor, metrics["round"], bins=_BINS
                    )

        trainer.run.each_logger(write)
