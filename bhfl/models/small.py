"""Small networks: MLP, LeNet and the CNN of the FedAvg papers."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from bhfl.models.blocks import (
    Convolutional,
    InputShape,
    Norm,
    check_arguments,
    fully_connected,
    init_he_,
    pooled_units,
)


class MLP(nn.Module):
    """Fully connected ReLU layers; the default is the "2NN" of FedAvg (McMahan et al. 2017, section
    3).

    Args:
        num_classes: K.
        input_shape: The shape of an input, which is flattened: (C, H, W) of an image, or any other.
        hidden: The units of each hidden layer; empty for a linear classifier.
        dropout: The probability of zeroing a hidden unit in training.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: InputShape,
        hidden: Sequence[int] = (200, 200),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        # an input of any shape is flattened, so that its shape is not the one that is checked
        check_arguments(num_classes, (1, 1, 1))
        if min(input_shape, default=0) < 1:
            raise ValueError(f"input_shape must be positive numbers, got {input_shape}")
        sizes = [math.prod(input_shape), *hidden]
        if min(sizes) < 1:
            raise ValueError(f"hidden must be positive numbers of units, got {hidden}")
        self.layers = fully_connected([*sizes, num_classes], dropout)
        init_he_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, K]``."""
        logits: Tensor = self.layers(images)
        return logits


class LeNet(Convolutional):
    """A LeNet-5 (LeCun et al. 1998) with ReLU, max pooling, and padded convolutions, so that 8x8
    digits fit.

    Args:
        num_classes: K.
        input_shape: (C, H, W), at least 4x4 pixels.
        norm: The normalisation after each convolution; the original has none.
    """

    def __init__(self, num_classes: int, input_shape: InputShape, norm: Norm = "none") -> None:
        check_arguments(num_classes, input_shape, min_side=4)
        channels, height, width = input_shape
        features = pooled_units(channels, (6, 16), 5, norm)
        num_features = 16 * (height // 4) * (width // 4)
        super().__init__(features, fully_connected([num_features, 120, 84, num_classes]))


class CNN(Convolutional):
    """Two 3x3 convolutions (32 and 64 channels), each pooled, and one hidden layer of 128 units.

    It has the form of FedAvg's CNN (McMahan et al. 2017, section 3) with smaller kernels and a
    smaller head: 545,098 parameters for 10 classes of 3x32x32, 53,002 for 1x8x8 digits.

    Args:
        num_classes: K.
        input_shape: (C, H, W), at least 4x4 pixels.
        norm: The normalisation after each convolution; the original has none.
        dropout: The probability of zeroing a hidden unit in training.
    """

    def __init__(
        self, num_classes: int, input_shape: InputShape, norm: Norm = "none", dropout: float = 0.0
    ) -> None:
        check_arguments(num_classes, input_shape, min_side=4)
        channels, height, width = input_shape
        features = pooled_units(channels, (32, 64), 3, norm)
        num_features = 64 * (height // 4) * (width // 4)
        super().__init__(features, fully_connected([num_features, 128, num_classes], dropout))
