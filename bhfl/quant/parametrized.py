"""Changing the class of modules, also under ``torch.nn.utils.parametrize``, which gives each module
a class of its own: a subclass of the module's, with a property in place of each parameter.
"""

from torch import nn
from torch.nn.utils.parametrize import is_parametrized


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module without its parametrizations."""
    return type(module).__mro__[1] if is_parametrized(module) else type(module)


def become_(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a module in place; parametrizations stay.

    Args:
        module: Its parameters, buffers, hooks and identity stay.
        cls: A subclass of its class, or a parent.
    """
    if is_parametrized(module):
        # but for the two descriptors that work only in the class that they were made for
        members = {
            name: value
            for name, value in vars(type(module)).items()
            if name not in ("__dict__", "__weakref__")
        }
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


def refuse_parametrized(module: nn.Module, what: str) -> None:
    """ValueError, which names the caller `what`, for a module whose weight is computed from others
    and so cannot be set.
    """
    key = getattr(module, "weight_key", "weight")
    if is_parametrized(module, key):
        raise ValueError(
            f"{what} must set the weight, but it is parametrized: call remove_parametrizations "
            "first"
        )
    if key not in module._parameters:
        raise ValueError(
            f"{what} must set the weight, but a hook computes it, as pruning does: remove that "
            "first"
        )
