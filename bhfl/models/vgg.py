"""VGG-7, the network that WAGE (Wu et al. 2018, section 4.1) and ProWD train on CIFAR-10."""

from torch import nn

from bhfl.models.blocks import (
    Convolutional,
    InputShape,
    Norm,
    check_arguments,
    conv_unit,
    dropout_layer,
    init_he_,
)


class VGG7(Convolutional):
    """2x(wC3)-MP2-2x(2wC3)-MP2-2x(4wC3)-MP2-8wFC-K, where wC3 is a 3x3 convolution of w channels.

    Args:
        num_classes: K.
        input_shape: (C, H, W), at least 8x8 pixels.
        width: w, the channels of the first two convolutions. 128 is full scale: 12,973,440 weights
            for 10 classes of 3x32x32. 24 is a size for a CPU.
        norm: normalisation after each convolution; WAGE has none.
        dropout: probability of zeroing a hidden unit in training.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: InputShape,
        width: int = 128,
        norm: Norm = "group",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(num_classes, input_shape, min_side=8)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        channels, image_height, image_width = input_shape
        layers: list[nn.Module] = []
        for out_channels in (width, 2 * width, 4 * width):
            layers += conv_unit(channels, out_channels, 3, norm)
            layers += conv_unit(out_channels, out_channels, 3, norm)
            layers.append(nn.MaxPool2d(2))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (image_height // 8) * (image_width // 8), 8 * width),
            nn.ReLU(),
            dropout_layer(dropout),
            nn.Linear(8 * width, num_classes),
        )
        init_he_(self)
