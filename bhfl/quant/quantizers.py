"""Range rules by name: those of the library, and those that a user registers."""

import re
from abc import ABC, abstractmethod
from typing import TypeVar

from torch import Tensor

BUILT_IN = ("absmax", "mse", "lsq", "pow2", "wage")
"""The rules of :func:`bhfl.quant.weight_scale`."""


class Quantizer(ABC):
    """A user's rule for the scale of the grid; codes, gradients, packing and payloads follow from
    the scale.

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
            [G]; it is clamped to scales that float32 can divide by, so that 0 is allowed.
        """


REGISTERED: dict[str, Quantizer] = {}
"""One quantizer for each registered name."""
QuantizerClass = TypeVar("QuantizerClass", bound=type[Quantizer])


def register_quantizer(quantizer: QuantizerClass) -> QuantizerClass:
    """Make a :class:`Quantizer` known to :class:`BitSpec` by its name, in this process.

    Args:
        quantizer: A subclass that takes no arguments; each process that uses it must register it.

    Returns:
        The class, so that this function is a decorator.

    Raises:
        ValueError: The class is not a subclass of Quantizer, its name is not a lower-case word, or
            the name is taken.
    """
    if not (isinstance(quantizer, type) and issubclass(quantizer, Quantizer)):
        raise ValueError(f"register_quantizer needs a subclass of Quantizer, got {quantizer!r}")
    name = getattr(quantizer, "name", None)
    # the name becomes part of a spec's label, and so of tags and of names of files
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{quantizer.__name__}.name must be a lower-case word, got {name!r}")
    if name in (*known_rules(), "auto"):
        raise ValueError(
            f"{quantizer.__name__}.name must not be taken, got {name!r}; taken: "
            f"auto, {', '.join(known_rules())}"
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
    """The scales of groups by a registered rule, [G, N] -> float32 [G]; ValueError if the rule
    returns anything else than [G].
    """
    scale = REGISTERED[range_rule].scale(x, bits)
    if not isinstance(scale, Tensor) or scale.shape != x.shape[:1]:
        raise ValueError(
            f"the scale of range rule {range_rule!r} must be a tensor [{len(x)}], got "
            f"{list(scale.shape) if isinstance(scale, Tensor) else type(scale).__name__}"
        )
    return scale.float()
