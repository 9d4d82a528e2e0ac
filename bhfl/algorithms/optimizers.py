"""What methods ask of the optimisers that clients train with."""

from itertools import chain
from typing import Any

from torch.optim import SGD, Optimizer

from bhfl.engine.algorithm import Context
from bhfl.engine.devices import Devices
from bhfl.engine.roster import one_of_each


def optimizers(context: Context) -> dict[Devices, list[Optimizer]]:
    """The optimisers of the clients on each kind of devices, none of which has made a step."""
    own = _configured(context.module)
    found = {}
    for client in one_of_each(context.clients):
        devices = client.devices
        replaced = devices.group.optimizer is not None
        found[devices] = [devices.optimizer(own[0])] if replaced else own
    return found


def momenta(context: Context, method: str) -> dict[Devices, float]:
    """The momentum of the clients on each kind of devices, all of which train by SGD.

    Args:
        context: What the run is made of.
        method: What needs it, for the message.

    Raises:
        ValueError: An optimiser is not SGD, is one of several, or has several momenta.
    """
    found = {}
    for devices, several in optimizers(context).items():
        groups = chain.from_iterable(one.param_groups for one in several)
        values = {group.get("momentum", 0.0) for group in groups}
        if len(several) != 1 or type(several[0]) is not SGD or len(values) != 1:
            names = ", ".join(type(one).__name__ for one in several)
            raise ValueError(
                f"{method} needs one torch.optim.SGD of one momentum, group "
                f"{devices.group.label!r} has {names} with momentum {sorted(map(str, values))}"
            )
        found[devices] = float(values.pop())
    return found


def _configured(module: Any) -> list[Optimizer]:
    # configure_optimizers may return many forms, all of which Lightning's own parser knows
    from lightning.pytorch.core.optimizer import _configure_optimizers

    return list(_configure_optimizers(module.configure_optimizers())[0])
