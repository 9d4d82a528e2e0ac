"""Quantised layers under a plain ``lightning.Trainer``: torchvision's ResNet-18 with 8-bit weights
and activations.

``python examples/resnet18_trainer.py`` trains on random images, in seconds on a CPU; put your own
data set there.
"""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData
from torchvision.models import resnet18
from torchvision.transforms import ToTensor

from bhfl.export import restore_, save_quantized
from bhfl.quant import quantize_


class ImageClassifier(L.LightningModule):
    """Nothing in it knows of bits: its network is quantised by one call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main(
    file: Path = Path("resnet18-int8.safetensors"), num_images: int = 64, epochs: int = 1
) -> ImageClassifier:
    """Train, save the integers, load them into a fresh network and see that it computes the
    same.
    """
    network = resnet18(num_classes=10)
    # the first and the last layer stay float, as is usual: they are small, and bits cost most there
    quantize_(network, 8, lambda name, _: name not in ("conv1", "fc"))
    model = ImageClassifier(network)

    images = FakeData(num_images, (3, 32, 32), num_classes=10, transform=ToTensor())
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(model, DataLoader(images, batch_size=16, shuffle=True))

    num_bytes = save_quantized(network, file)
    float32_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    print(f"{file}: {num_bytes:,} bytes, {num_bytes / float32_bytes:.2f} of float32")
    again = restore_(resnet18(num_classes=10), file)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), network.eval()(x))
    return model


if __name__ == "__main__":
    main()
