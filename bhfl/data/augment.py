"""Augmentations: random changes of whole batches of pictures, by draws from a generator that the
caller keys.

Shapes: B pictures, C channels, H rows, W columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""A function from ``[B, C, H, W]`` and the source of its draws to the same shape and dtype."""

PADDING = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by four zeros on each side, crop at random to the old size, and mirror half of the
    pictures on average (He et al. 2016, section 4.2).

    Args:
        images: ``[B, C, H, W]``, any dtype; left as it is.
        generator: A CPU generator.

    Returns:
        A new tensor of the same shape and dtype.
    """
    size, _, height, width = images.shape
    row, column = torch.randint(2 * PADDING + 1, (2, size), generator=generator)
    mirrored = torch.randint(2, (size, 1, 1, 1), generator=generator, dtype=torch.bool)
    # every crop that there is, [B, C, 9, 9, H, W], as a view
    windows = pad(images, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(size), :, row, column]
    return torch.where(mirrored, crops.flip(-1), crops)


AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "crop_flip": crop_flip}
