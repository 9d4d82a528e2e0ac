"""A network with a loss and an optimiser, which torch alone trains."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bhfl.checks import checked, within
from bhfl.models.adapters import freeze_
from bhfl.models.blocks import InputShape, Norm
from bhfl.models.factory import network
from bhfl.recorded import Recorded

Batch = tuple[Tensor, Tensor]


class Supervised(Recorded, nn.Module):
    """Trains a network on a loss of its outputs and their targets, without Lightning.

    With a network of the same name and the default loss it comes to the same bits as `Classifier`,
    and its state has the same names: those of the network after ``net.``.

    Args:
        net: The name of a network (see `bhfl.models.build`), or a module from inputs to outputs,
            which is used as it is: the next four arguments are for named networks alone.
        num_classes: K.
        input_shape: (C, H, W) of one image.
        net_kwargs: More arguments of the named network.
        norm: The normalisation of the named network, see `Classifier`.
        loss: A function from outputs and targets to a scalar, such as ``torch.nn.MSELoss()``; unset
            for cross-entropy.
        optimizer: Makes the optimizer from the parameters.
        label_smoothing: The share of each training label that is spread over all classes, in [0,
            1); for cross-entropy that is unset alone.
        adapters: See `Classifier`.
        trained: See `Classifier`.

    Raises:
        ValueError: An argument breaks its rule.
    """

    def __init__(  # noqa: PLR0913
        self,
        net: str | nn.Module = "cnn",
        num_classes: int = 10,
        input_shape: InputShape = (1, 8, 8),
        net_kwargs: dict[str, Any] | None = None,
        norm: Norm | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = lambda params: (
            torch.optim.SGD(params, lr=0.05, momentum=0.9)
        ),
        label_smoothing: float = 0.0,
        adapters: int | None = None,
        trained: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.net = network(net, num_classes, input_shape, net_kwargs, norm)
        freeze_(self.net, trained, adapters)
        if loss is not None and label_smoothing:
            raise ValueError(
                f"label_smoothing is for the cross-entropy that loss: null is, got "
                f"{label_smoothing} beside {loss}"
            )
        # no submodule, whose state would travel
        self._loss = (loss,)
        self.make_optimizer = optimizer
        self.label_smoothing = checked("label_smoothing", label_smoothing, within("[0, 1)"))

    def forward(self, inputs: Tensor) -> Any:
        """Map inputs to what the network makes of them.

        Args:
            inputs: ``[B, ...]``.

        Returns:
            Its outputs, of classes logits ``[B, K]``.
        """
        return self.net(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Args:
            batch: Inputs and targets.
            batch_idx: Its place in the local epoch.

        Returns:
            A scalar.
        """
        inputs, targets = batch
        return self._loss_of(self(inputs), targets, self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Measure a batch of validation.

        Args:
            batch: Inputs and targets.
            batch_idx: Its place in the pass.

        Returns:
            ``loss``, and of classes (targets ``[B]`` of integers) ``acc``, the fraction of right
            answers.
        """
        found = self._measured(batch)
        found.pop("correct", None)
        return found

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Measure a batch of the test.

        Args:
            batch: Inputs and targets.
            batch_idx: Its place in the pass.

        Returns:
            What validation returns, and of classes ``correct`` ``[B]``: which answers were right.
        """
        return self._measured(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self.make_optimizer(self.parameters())

    def _measured(self, batch: Batch) -> dict[str, Tensor]:
        inputs, targets = batch
        outputs = self(inputs)
        found = {"loss": self._loss_of(outputs, targets)}
        if targets.ndim == 1 and not targets.is_floating_point() and outputs.ndim == 2:
            found["correct"] = outputs.argmax(dim=1) == targets
            found["acc"] = found["correct"].float().mean()
        return found

    def _loss_of(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        (loss,) = self._loss
        if loss is not None:
            return loss(outputs, targets)
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
