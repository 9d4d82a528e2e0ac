"""VGG-7, the network that WAGE (Wu et al. 2018, section 4.1) and ProWD train on CIFAR-10."""

from bhfl.models.blocks import (
    Convolutional,
    InputShape,
    Norm,
    check_arguments,
    fully_connected,
    pooled_units,
)


class VGG7(Convolutional):
    """2x(wC3)-MP2-2x(2wC3)-MP2-2x(4wC3)-MP2-8wFC-K, where wC3 is a 3x3 convolution of w channels,
    MP2 a 2x2 max pooling and 8wFC a linear layer of 8w units.

    Args:
        num_classes: K.
        input_shape: (C, H, W), at least 8x8 pixels.
        width: w, the channels of the first two convolutions. 128 is that of the papers: 12,973,440
            weights for 10 classes of 3x32x32. 24 is a size for a CPU.
        norm: The normalisation after each convolution; WAGE has none.
        dropout: The probability of zeroing a hidden unit in training.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: InputShape,
        width: int = 128,
        norm: Norm = "group",
        dropout: float = 0.0,
    ) -> None:
        check_arguments(num_classes, input_shape, min_side=8)
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        channels, image_height, image_width = input_shape
        features = pooled_units(channels, (width, 2 * width, 4 * width), 3, norm, depth=2)
        # three poolings halve the image, each rounding down: together they are // 8
        num_features = 4 * width * (image_height // 8) * (image_width // 8)
        head = fully_connected([num_features, 8 * width, num_classes], dropout)
        super().__init__(features, head)
