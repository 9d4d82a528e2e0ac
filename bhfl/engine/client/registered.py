"""The parameters and buffers that a module has registered: what a client does to them ends with
it.
"""

import warnings

import torch
from torch import Tensor, nn


class Registered:
    """What is registered in a module when it is lent, and the way back to it.

    Args:
        module: Lent to one client after the other.
        device: Where it computes.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device = module, device
        self.parameters = dict(module.named_parameters())
        self.trained = [(one, one.requires_grad) for one in self.parameters.values()]
        self.layers = list(module.modules())
        # a buffer that several layers share has a name in each
        self.buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
        self.empty = {name: _empty(layer) for name, layer in module.named_modules()}
        self.num_buffers = self._count()

    def train_as_lent(self) -> None:
        """Train the parameters that were to be trained."""
        for parameter, trained in self.trained:
            parameter.requires_grad = trained

    def put(self, name: str, value: Tensor) -> None:
        """Give a tensor its value: in place, as others may hold it too, unless a client has
        replaced it.

        Args:
            name: The tensor's.
            value: Dense or not, on any device.
        """
        owner, _, leaf = name.rpartition(".")
        layer = self.module.get_submodule(owner)
        here = getattr(layer, leaf, None)
        wanted = (value.shape, value.dtype, torch.strided)
        # an expanded tensor, of which several entries are one, cannot be written to
        if (
            here is not None
            and (here.shape, here.dtype, here.layout) == wanted
            and 0 not in here.stride()
        ):
            here.copy_(value)
            return
        # a copy: a decoded message serves the clients after this one too
        fresh = value.to(self.device, copy=True)
        if name in self.parameters:
            # the very Parameter that was lent comes back to its place, with the value as its data
            fresh, self.parameters[name].data = self.parameters[name], fresh
        setattr(layer, leaf, fresh)

    def drop_new(self) -> None:
        """Take away the buffers that a client has registered, which the next one would go on
        with.
        """
        # hardly any client registers one: to count costs less than to walk all names
        if self._count() == self.num_buffers:
            return
        for name, _ in list(self.module.named_buffers(remove_duplicate=False)):
            if name in self.buffers:
                continue
            owner, _, leaf = name.rpartition(".")
            layer = self.module.get_submodule(owner)
            if leaf in self.empty.get(owner, ()):
                # a buffer that was registered as None, which clients may fill, is not a new one
                setattr(layer, leaf, None)
                continue
            delattr(layer, leaf)
            warnings.warn(
                f"{name} was registered while a client trained, and is taken away before the next "
                "one begins: register it in __init__, with None for a value that clients find out",
                stacklevel=2,
            )

    def _count(self) -> int:
        return sum(len(layer._buffers) - len(_empty(layer)) for layer in self.layers)


def frozen_in(module: nn.Module) -> frozenset[str]:
    """The names of a module's frozen parameters in its state; a tied one has several.

    It is called once, before any hook of an algorithm: what is frozen later is trained as far as
    messages go.
    """
    return frozenset(
        name
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, nn.Parameter) and not value.requires_grad
    )


def _empty(layer: nn.Module) -> set[str]:
    """The names of a layer's buffers that hold nothing yet."""
    return {name for name, buffer in layer._buffers.items() if buffer is None}
