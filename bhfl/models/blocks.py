"""What the networks share: normalisation by name, units of layers, initial weights, and checks of
their arguments.

ReLUs here are not in place: a layer that quantises the errors may hand on a view of its output, and
autograd forbids changing such a view.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

Norm = Literal["group", "batch", "none"]
InputShape = tuple[int, ...]
"""The shape of one input, (C, H, W) for an image."""


def num_groups(channels: int) -> int:
    """Return how many groups `norm2d` makes: as many as divide the channels and hold at least 8 of
    them, but at most 32, the default of GroupNorm's paper (Wu and He 2018).
    """
    # fewer channels would leave almost nothing to normalise where the image is one pixel
    limit = min(32, max(1, channels // 8))
    return max(groups for groups in range(1, limit + 1) if channels % groups == 0)


def norm2d(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation `norm` of maps ``[B, channels, H, W]``; "none" is the identity.

    Raises:
        ValueError: `norm` is not one of the three names.
    """
    if norm == "group":
        return nn.GroupNorm(num_groups(channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm must be 'group', 'batch' or 'none', got {norm!r}")


def conv2d(
    in_channels: int, out_channels: int, kernel: int, norm: Norm, stride: int = 1
) -> nn.Conv2d:
    """Return a convolution, padded so that an odd `kernel` with `stride` 1 keeps the image's size.

    It has no bias where a normalisation follows, whose shift does the same.
    """
    bias = norm == "none"
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


def conv_unit(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> list[nn.Module]:
    """Return convolution, normalisation and ReLU."""
    return [conv2d(in_channels, out_channels, kernel, norm), norm2d(norm, out_channels), nn.ReLU()]


def pooled_units(
    in_channels: int, widths: Sequence[int], kernel: int, norm: Norm, depth: int = 1
) -> nn.Sequential:
    """Return `depth` convolution units for each width, and a pooling behind them that halves the
    image.
    """
    layers = []
    for width in widths:
        for _ in range(depth):
            layers += conv_unit(in_channels, width, kernel, norm)
            in_channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def fully_connected(sizes: Sequence[int], dropout: float | None = None) -> nn.Sequential:
    """Return linear layers from the first of `sizes`, a flattened input, to the last; a ReLU
    follows each but the last, and dropout unless it is None.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for num_in, num_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
        if dropout is not None:
            # the identity for 0, so that the keys of `state_dict` do not depend on it
            layers.append(nn.Dropout(dropout) if dropout else nn.Identity())
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Convolutional(nn.Module):
    """A network of two parts, whose weights it draws.

    Args:
        features: Makes maps of images.
        head: Makes logits of maps.
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head
        init_he_(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, K]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def init_he_(network: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 2 / fan_in) (He et al. 2015, section 2.2), and
    those of hidden linear layers from N(0, 1 / fan_in), with torch's generator; biases become zero.

    The last layer keeps torch's own draw.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    # with He's larger gain in the linear layers too, the first steps of SGD with momentum make
    # VGG-7 diverge
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(
            layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear"
        )
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_arguments(num_classes: int, input_shape: InputShape, min_side: int = 1) -> None:
    """Refuse sizes that no network can be built for.

    Args:
        num_classes: K, at least 2.
        input_shape: (C, H, W) of one image.
        min_side: The smallest H and W of which the network's poolings leave a pixel.

    Raises:
        ValueError: One of them cannot be used; the message has the argument, the rule and the
            value.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be three positive numbers (C, H, W), got {input_shape}")
    if input_shape[0] == input_shape[1] > 4 >= input_shape[2]:
        warnings.warn(
            f"input_shape {tuple(input_shape)} is taken for channels, rows and columns: pictures "
            "whose colours come last are to be given as images.transpose(0, 3, 1, 2)",
            stacklevel=2,
        )
    if min(input_shape[1:]) < min_side:
        raise ValueError(
            f"input_shape must be at least {min_side}x{min_side} pixels here, got {input_shape}"
        )
