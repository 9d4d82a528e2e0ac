"""Residual networks for small images (He et al. 2016), with a 3x3 stem and no pooling before the
last layer.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from bhfl.models.blocks import (
    InputShape,
    Norm,
    check_arguments,
    conv2d,
    conv_unit,
    init_he_,
    norm2d,
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        in_channels: The channels of its input.
        out_channels: The channels of its output.
        stride: The stride of the first convolution and of the shortcut.
        norm: The normalisation after each convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv2d(in_channels, out_channels, 3, norm, stride)
        self.norm1 = norm2d(norm, out_channels)
        self.conv2 = conv2d(out_channels, out_channels, 3, norm)
        self.norm2 = norm2d(norm, out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                conv2d(in_channels, out_channels, 1, norm, stride), norm2d(norm, out_channels)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[B, in_channels, H, W]`` to ``[B, out_channels, ceil(H / stride), ceil(W /
        stride)]``.
        """
        residual = self.relu(self.norm1(self.conv1(maps)))
        residual = self.norm2(self.conv2(residual))
        output: Tensor = self.relu(residual + self.shortcut(maps))
        return output


class ResNet(nn.Module):
    """Stages of residual blocks; every stage after the first halves the image.

    The residual branches start at 1 / sqrt(number of blocks) of their usual size, so that their sum
    does not grow with their number: deeper networks then train at the learning rates of shallow
    ones, and also without any norm.

    Args:
        num_classes: K.
        input_shape: (C, H, W) of any size.
        widths: The channels of each stage; the stem has those of the first.
        blocks: The number of residual blocks in each stage.
        norm: The normalisation after each convolution.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: InputShape,
        widths: Sequence[int],
        blocks: int,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        check_arguments(num_classes, input_shape)
        self.stem = nn.Sequential(*conv_unit(input_shape[0], widths[0], 3, norm))
        layers = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(ResidualBlock(channels, width, stride, norm))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
        )
        init_he_(self)
        with torch.no_grad():
            for layer in layers:
                # a norm would undo a smaller convolution before it, so its own weight is what
                # shrinks
                last = layer.conv2 if isinstance(layer.norm2, nn.Identity) else layer.norm2
                last.get_parameter("weight").mul_(len(layers) ** -0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, K]``."""
        logits: Tensor = self.head(self.blocks(self.stem(images)))
        return logits


class _SizedResNet(ResNet):
    """A residual network whose subclasses say how large it is.

    Args:
        num_classes: K.
        input_shape: (C, H, W) of any size.
        norm: The normalisation after each convolution.
    """

    widths: ClassVar[Sequence[int]] = (16, 32, 64)
    num_blocks: ClassVar[int]

    def __init__(self, num_classes: int, input_shape: InputShape, norm: Norm = "group") -> None:
        super().__init__(num_classes, input_shape, self.widths, self.num_blocks, norm)


class ResNet8(_SizedResNet):
    """The 8-layer residual network of small devices: 16, 32 and 64 channels, 78,042 parameters for
    3x32x32.
    """

    num_blocks = 1


class ResNet20(_SizedResNet):
    """The CIFAR network of He et al. 2016, section 4.2, n = 3, with projection shortcuts: 272,474
    parameters.
    """

    num_blocks = 3


class ResNet18(_SizedResNet):
    """ResNet-18 (He et al. 2016, table 1) with a 3x3 stem for small images: 11,173,962 parameters
    for 3x32x32.
    """

    widths = (64, 128, 256, 512)
    num_blocks = 2
