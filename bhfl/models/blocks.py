"""What the networks share: normalisation by name, convolution units, initial weights, checks of
their arguments.

ReLUs here are not in place: a layer that quantises the errors may hand on a view of its output, and
autograd forbids changing such a view.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["group", "batch", "none"]
InputShape = tuple[int, ...]


def num_groups(channels: int) -> int:
    """Return how many groups `norm2d` makes: they divide the channels, hold at least 8 of them, and
    are at most 32.

    32 is the default of GroupNorm's paper (Wu and He 2018). Fewer than 8 channels a group would
    leave almost nothing to normalise where the image has shrunk to one pixel.
    """
    limit = min(32, max(1, channels // 8))
    return max(groups for groups in range(1, limit + 1) if channels % groups == 0)


def norm2d(norm: Norm, channels: int) -> nn.Module:
    """Return the normalisation `norm` of maps ``[B, channels, H, W]``; "none" is the identity.

    Raises:
        ValueError: if `norm` is none of the three names.
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
    """Return a convolution that keeps the size of the image (odd `kernel`, `stride` 1).

    It has a bias only where no normalisation follows: there the shift of the norm does the same
    work.
    """
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=norm == "none"
    )


def conv_unit(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> list[nn.Module]:
    """Return convolution, normalisation and ReLU."""
    return [conv2d(in_channels, out_channels, kernel, norm), norm2d(norm, out_channels), nn.ReLU()]


def pooled_units(in_channels: int, widths: Sequence[int], kernel: int, norm: Norm) -> nn.Sequential:
    """Return a convolution unit for each width, each of which halves the image behind it."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [*conv_unit(in_channels, width, kernel, norm), nn.MaxPool2d(2)]
        in_channels = width
    return nn.Sequential(*layers)


class Convolutional(nn.Module):
    """A network of two parts: `features` makes maps of images, and `head` makes logits of maps."""

    features: nn.Module
    head: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` to logits ``[B, K]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def dropout_layer(probability: float) -> nn.Module:
    """Return dropout, or the identity for 0, so that `state_dict` keys do not depend on it."""
    return nn.Dropout(probability) if probability else nn.Identity()


def init_he_(network: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 2 / fan_in) (He et al. 2015, section 2.2) with
    torch's generator.

    Hidden linear layers get N(0, 1 / fan_in) and the last layer keeps torch's own, smaller draw:
    with He's gain there too, the first steps of SGD with momentum throw VGG-7 off. Biases start at
    zero, but for the last.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers[:-1]:
        nn.init.kaiming_normal_(
            layer.weight, nonlinearity="relu" if isinstance(layer, nn.Conv2d) else "linear"
        )
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_arguments(num_classes: int, input_shape: InputShape, min_side: int = 1) -> None:
    """Refuse sizes no network can be built for.

    Args:
        num_classes: K, at least 2.
        input_shape: (C, H, W) of one image.
        min_side: smallest H and W that the network's poolings leave a pixel of.

    Raises:
        ValueError: One of them cannot be used; it names the argument, the rule and the value.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape must be three positive numbers (C, H, W), got {input_shape}")
    if min(input_shape[1:]) < min_side:
        raise ValueError(
            f"input_shape must be at least {min_side}x{min_side} pixels here, got {input_shape}"
        )
