"""What the state of a model must be to travel between server and clients."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bhfl.checks import refuse

_KINDS = (
    torch.float32,
    # these travel as they are, and the server takes their maximum
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
"""The kinds of tensors that can be sent."""
_OR_KEEP = "or register_buffer(..., persistent=False), where each client begins anew with it"

# Each rule, with what to do where it is broken.
_TENSORS = (
    "the model's state_dict must hold parameters and buffers only, got others",
    "keep tensors in buffers, and the rest in other attributes",
)
_VALUES = (
    "the model's parameters and buffers must have values, got",
    "run one batch through a model with lazy layers first; "
    "for one on meta, to_empty(device='cpu') and its weights",
)
_FLOAT = (
    "the model's floating parameters and buffers must be float32, got",
    f"call .float() on it, {_OR_KEEP}",
)
_INTEGER = (
    "the model's integer buffers must be int8, int16, int32, int64, uint8 or bool, got",
    f"store them as int64, {_OR_KEEP}",
)
_FINITE = (
    "the model's trained parameters and buffers must hold neither NaN nor infinity, which has no "
    "mean, got others",
    f"store what is to be infinite as a mask of bool, {_OR_KEEP}, "
    "and begin with weights of a training that has not diverged",
)
_REAL = (
    "the model's parameters and buffers must be real, got",
    f"store torch.view_as_real(...) and compute with torch.view_as_complex(...), {_OR_KEEP}",
)
_DENSE = ("the model's parameters and buffers must be dense, got", f"store to_dense(), {_OR_KEEP}")
_FLAT = (
    "the model's parameters and buffers must not be nested tensors, got",
    "store a padded tensor and its lengths",
)
_KEPT = (
    "the model's state_dict must hold all that is trained, and lacks",
    "freeze it, or leave state_dict as torch makes it",
)
_PLAIN = (
    "the model must not be quantised by torch, got",
    "give the float model: bhfl quantises it for each client",
)


def check_state(model: nn.Module) -> None:
    """Refuse a model whose state could not be sent, averaged and given back to the bit; it is left
    as it is.

    Raises:
        ValueError: With every rule that is broken, a line each: the tensors, their kinds, and what
            to do.
    """
    broken = defaultdict(list)
    saved = model.state_dict(keep_vars=True)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # a learned step is never saved
        if parameter.requires_grad and name not in saved and not name.endswith("weight_step"):
            broken[_KEPT].append(name)
    for name, value in {**saved, **dict(model.named_buffers())}.items():
        # set_extra_state would have to be called for each client
        rule = _TENSORS if name.endswith("_extra_state") else _broken(value)
        # buffers that are never saved need not be sent
        if rule and (name in saved or rule in (_VALUES, _FLAT)):
            told = name if rule in (_TENSORS, _FINITE) else f"{name} is {kind_of(value)}"
            broken[rule].append(told)
    refuse(f"{rule}: {', '.join(names[:5])}; {do}" for (rule, do), names in broken.items())


def _broken(value: Any) -> tuple[str, str] | None:  # noqa: PLR0911  # rule by rule
    """The rule that a value of a state breaks."""
    if not isinstance(value, Tensor):
        return _TENSORS
    if is_lazy(value) or value.is_meta:
        return _VALUES
    if value.is_quantized:
        return _PLAIN
    if value.is_nested:
        return _FLAT
    if value.layout != torch.strided:
        return _DENSE
    if value.is_complex():
        return _REAL
    if value.dtype not in _KINDS:
        return _FLOAT if value.is_floating_point() else _INTEGER
    # a parameter that is frozen is not sent
    unsent = isinstance(value, nn.Parameter) and not value.requires_grad
    return None if unsent or value.isfinite().all() else _FINITE


def kind_of(value: Tensor) -> str:
    """What kind of tensor it is, in a few words."""
    if is_lazy(value):
        return "not initialised"
    if value.is_meta:
        return "on meta"
    if value.is_nested:
        return "nested"
    return str(value.dtype) if value.layout == torch.strided else f"{value.dtype}, {value.layout}"
