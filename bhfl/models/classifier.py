"""The ready-made client: an ordinary LightningModule that classifies images."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bhfl.checks import checked, choice, within
from bhfl.models.adapters import freeze_
from bhfl.models.blocks import InputShape, Norm
from bhfl.models.factory import network
from bhfl.recorded import Recorded

# Lightning's own aliases of these names need jsonargparse; a command line reads these just as well.
OptimizerCallable = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
LRSchedulerCallable = Callable[[torch.optim.Optimizer], LRScheduler]
Batch = tuple[Tensor, Tensor]


class Classifier(Recorded, L.LightningModule):
    """Trains a network on the cross-entropy of (images ``[B, C, H, W]``, labels ``[B]``) batches.

    It knows nothing of federated learning: ``lightning.Trainer`` runs it as it is. Validation logs
    "val/loss" and "val/acc", testing "test/loss" and "test/acc": cross-entropy without smoothing,
    and the fraction of right answers.

    Args:
        net: The name of a network (see `bhfl.models.build`), or a module from images to logits,
            which is used as it is: the next four arguments are for named networks alone.
        num_classes: K.
        input_shape: (C, H, W) of one image.
        net_kwargs: More arguments of the named network, such as ``{"width": 24}`` for vgg7.
        norm: The normalisation of the named network: "group", "batch", "none", or unset for its own
            default.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer; none by default. A
            ``ReduceLROnPlateau`` follows its ``monitor`` where it has one (Lightning's has), else
            "val/loss".
        lr_interval: Whether the scheduler advances every "epoch" or every "step".
        label_smoothing: The share of each training label that is spread over all classes, in
            [0, 1).
        adapters: The rank of low-rank adapters: the network is frozen, and each of its linear
            layers has one, which is trained in its place; see `LowRank`.
        trained: Parameters of the network that are trained, by name or pattern such as
            ``head.*``, while all others are frozen; beside the adapters, where there are any. Unset
            trains all where there are no adapters.

    Raises:
        ValueError: An argument breaks its rule.
    """

    validation_metrics = ("loss", "acc")
    """What `validation_step` of this very class logs after ``val/``."""

    def __init__(  # noqa: PLR0913
        self,
        net: str | nn.Module = "cnn",
        num_classes: int = 10,
        input_shape: InputShape = (1, 8, 8),
        net_kwargs: dict[str, Any] | None = None,
        norm: Norm | None = None,
        # A lambda rather than a function: jsonargparse reads its source, so `--optimizer.lr` alone
        # can be changed.
        optimizer: OptimizerCallable = lambda params: torch.optim.SGD(
            params, lr=0.05, momentum=0.9
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        adapters: int | None = None,
        trained: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.net = network(net, num_classes, input_shape, net_kwargs, norm)
        freeze_(self.net, trained, adapters)
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = checked("lr_interval", lr_interval, choice("epoch", "step"))
        self.label_smoothing = checked("label_smoothing", label_smoothing, within("[0, 1)"))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, K]``."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss; nothing is logged, so a local step costs no more than its arithmetic."""
        images, labels = batch
        return F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log "val/loss" and "val/acc"."""
        self._log_metrics("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log "test/loss" and "test/acc"; return "correct" ``[B]``: which answers were right."""
        return {"correct": self._log_metrics("test", batch)}

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Return the logits of a batch with or without labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        logits: Tensor = self(images)
        return logits

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with its scheduler where there is one."""
        optimizer = self.make_optimizer(self.parameters())
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _log_metrics(self, stage: str, batch: Batch) -> Tensor:
        """Log the metrics of a batch; whether each answer was right, ``[B]``."""
        images, labels = batch
        logits = self(images)
        correct: Tensor = logits.argmax(dim=1) == labels
        # the mean over batches weighs each by its size, at which Lightning would have to guess
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{stage}/acc", correct.float().mean(), batch_size=len(labels))
        return correct
