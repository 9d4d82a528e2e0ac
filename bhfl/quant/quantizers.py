"""Range rules by name: those of the library, and one's own."""

import re
from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

BUILT_IN = ("absmax", "mse", "lsq", "pow2", "wage")
"""The rules of :func:`bhfl.quant.weight_scale`."""


class Quantizer(ABC):
    """A rule of one's own for the scale of the grid; codes, gradients, packing and payloads follow
    from the scale.

    >>> from bhfl.quant import BitSpec, Quantizer, quantize_, register_quantizer
    >>> from bhfl.quant.rounding import levels
    >>> @register_quantizer
    ... class Percentile(Quantizer):
    ...     '''Clips the largest hundredth of each group.'''
    ...
    ...     name = "percentile"
    ...
    ...     def scale(self, x, bits):
    ...         return x.abs().quantile(0.99, dim=1) / levels(bits)
    >>> spec = BitSpec(weights=4, activations=8, range_rule="percentile", granularity="channel")
    >>> spec.label
    'w4a8-percentile-channel'
    >>> import torch
    >>> quantize_(torch.nn.Linear(300, 2), spec).quantized_weight().codes.abs().amax(1)
    tensor([7, 7], dtype=torch.int8)

    Attributes:
        name: What ``BitSpec.range_rule`` calls it.
        clips: Whether values may lie beyond the largest code; these then have no gradient.
    """

    name: str
    clips: bool = True

    @abstractmethod
    def scale(self, x: Tensor, bits: int) -> Tensor:
        """The step of the grid of each group.

        Args:
            x: Float32 [G, N], G groups with a scale each: one, or one for each output channel; not
                empty.
            bits: 2..16; the largest code is ``2**(bits-1) - 1``.

        Returns:
            [G]; kept within what float32 divides by, so that 0 is allowed.
        """


REGISTERED: dict[str, Quantizer] = {}
Class = TypeVar("Class", bound=type[Quantizer])


def register_quantizer(quantizer: Class) -> Class:
    """Make a class of :class:`Quantizer` known to :class:`BitSpec` by its name; in every process
    that uses it.

    Raises:
        ValueError: The class is no Quantizer, or its name is no lower-case word, or is taken.
    """
    if not (isinstance(quantizer, type) and issubclass(quantizer, Quantizer)):
        raise ValueError(f"register_quantizer needs a subclass of Quantizer, got {quantizer!r}")
    name = getattr(quantizer, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{quantizer.__name__}.name must be a lower-case word, got {name!r}")
    if name in known_rules():
        raise ValueError(
            f"{quantizer.__name__}.name must not be taken, got {name!r}; taken: "
            f"{', '.join(known_rules())}"
        )
    REGISTERED[name] = quantizer()
    return quantizer


def known_rules() -> tuple[str, ...]:
    """The names that ``BitSpec.range_rule`` may have."""
    return (*BUILT_IN, *REGISTERED)


def clips(range_rule: str) -> bool:
    """Whether values may lie beyond the largest code of a rule."""
    return range_rule in ("mse", "lsq") or (
        range_rule in REGISTERED and REGISTERED[range_rule].clips
    )


def group_scale(range_rule: str, x: Tensor, bits: int) -> Tensor:
    """[G, N] -> [G] by a registered rule; ValueError if its result is none."""
    scale = REGISTERED[range_rule].scale(x, bits)
    if not isinstance(scale, Tensor) or scale.shape != x.shape[:1]:
        shape = list(scale.shape) if isinstance(scale, Tensor) else type(scale).__name__
        raise ValueError(
            f"the scale of range rule {range_rule!r} must be a tensor [{len(x)}], got {shape}"
        )
    return scale.float()
