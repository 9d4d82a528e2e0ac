"""What methods ask of the optimisers that clients train with."""

from itertools import chain
from typing import Any

from torch.optim import SGD, Optimizer

from bhfl.engine.algorithm import Context
from bhfl.engine.devices import Devices
from bhfl.engine.roster import one_of_each

_KEYS = ("momentum", "nesterov", "dampening", "max_momentum")


def check_sgd(context: Context, method: str, remedy: str = "") -> dict[Devices, Optimizer]:
    """The optimisers of the clients on each kind of devices, all of which are SGD of one momentum.

    Args:
        context: What the run is made of.
        method: What needs it, for the message.
        remedy: Ends the message.

    Raises:
        ValueError: An optimiser is not SGD, is one of several, has several momenta, dampens its
            momentum, or has a schedule of it.
    """
    own, _ = configured_by(context)
    found = {}
    for client in one_of_each(context.clients):
        devices = client.devices
        several = own if devices.group.optimizer is None else [devices.optimizer(own[0])]
        groups = chain.from_iterable(one.param_groups for one in several)
        rules = {tuple(map(group.get, _KEYS)) for group in groups}
        fits = len(several) == 1 and type(several[0]) is SGD and len(rules) == 1
        for momentum, _, dampening, cycled in rules:
            # without momentum there is nothing to dampen; schedules that change it note its range
            fits = fits and not cycled and not (momentum and dampening)
        if not fits:
            names = ", ".join(type(one).__name__ for one in several)
            raise ValueError(
                f"{method} needs one torch.optim.SGD of one momentum, without dampening and with "
                f"cycle_momentum: false in schedules, group {devices.group.label!r} has {names} "
                f"with {', '.join(_KEYS)} of {sorted(rules, key=str)}{remedy}"
            )
        found[devices] = several[0]
    return found


def check_plain(context: Context, method: str, remedy: str = "") -> list[Optimizer]:
    """The optimisers of all clients, which train by SGD without momentum: under it alone a move
    over the sum of its learning rates is a mean gradient. See `check_sgd`.
    """
    found = [*check_sgd(context, method, remedy).values()]
    if any(one.param_groups[0]["momentum"] for one in found):
        raise ValueError(
            f"{method} needs torch.optim.SGD without momentum: set momentum to 0 in the model's "
            f"optimizer and in those of groups{remedy}"
        )
    return found


def configured_by(context: Context) -> tuple[list[Optimizer], list[Any]]:
    """The optimisers that the module asks for, and their schedules as Lightning configures them."""
    # a small device trains with torch alone
    from bhfl.engine.client.optim import configured

    return configured(context.module)
