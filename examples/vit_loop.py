"""Quantised layers in a plain PyTorch loop: a small vision transformer of torchvision, down to
ternary weights.

``python examples/vit_loop.py`` learns to tell in which quarter of an image the bright spot is, in
seconds on a CPU.
"""

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from bhfl.quant import dequantize_, quantize_, set_spec_


def spots(num_images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images [num_images, 3, 16, 16] and the quarter of each, 0..3, that is brighter."""
    labels = torch.randint(4, (num_images,), generator=generator)
    images = 0.5 * torch.randn(num_images, 3, 2, 8, 2, 8, generator=generator)
    images[torch.arange(num_images), :, labels // 2, :, labels % 2] += 1
    return images.reshape(num_images, 3, 16, 16), labels


def train(model: nn.Module, steps: int, generator: torch.Generator) -> None:
    """Train by steps of Adam, each on fresh images."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(steps):
        images, labels = spots(32, generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """The share of right answers on 256 images."""
    images, labels = spots(256, torch.Generator().manual_seed(1))
    return float((model.eval()(images).argmax(1) == labels).float().mean())


def main(steps: int = 200) -> dict[str, float]:
    """Train with 8-bit layers, go on with ternary weights, and leave as a plain float model."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = VisionTransformer(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=4,
    )
    # torchvision begins with zeros, from which no layer before the head would learn at first
    nn.init.normal_(model.heads.head.weight, std=0.02)

    found = {}
    quantize_(model, 8)  # the projections of attention too
    train(model, steps, generator)
    found["8 bits"] = accuracy(model)

    set_spec_(model, "ternary")  # the same parameters on a coarser grid
    found["8 bits, rounded to ternary"] = accuracy(model)
    train(model, steps // 2, generator)
    found["ternary"] = accuracy(model)

    dequantize_(model)  # plain torch layers, whose float weights are the ternary values
    found["ternary weights, plain layers"] = accuracy(model)
    for name, value in found.items():
        print(f"{name:<30} {100 * value:5.1f} %")
    return found


if __name__ == "__main__":
    main()
