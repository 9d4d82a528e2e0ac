"""What methods ask of the optimisers that clients train with."""

from itertools import chain
from typing import Any

from torch.optim import SGD, Optimizer

from bhfl.engine.algorithm import Context
from bhfl.engine.devices import Devices
from bhfl.engine.roster import one_of_each

_KEYS = ("momentum", "nesterov", "dampening", "max_momentum")


def optimizers(context: Context) -> dict[Devices, list[Optimizer]]:
    """The optimisers of the clients on each kind of devices, none of which has made a step."""
    own, _ = _configured(context)
    found = {}
    for client in one_of_each(context.clients):
        devices = client.devices
        replaced = devices.group.optimizer is not None
        found[devices] = [devices.optimizer(own[0])] if replaced else own
    return found


def momenta(context: Context, method: str, remedy: str = "") -> dict[Devices, tuple[float, bool]]:
    """The momentum of the clients on each kind of devices, all of which train by SGD, and whether
    it is Nesterov's.

    Args:
        context: What the run is made of.
        method: What needs it, for the message.
        remedy: Ends the message.

    Raises:
        ValueError: An optimiser is not SGD, is one of several, has several momenta, dampens its
            momentum, or has a schedule of it.
    """
    found = {}
    for devices, several in optimizers(context).items():
        groups = chain.from_iterable(one.param_groups for one in several)
        rules = {tuple(map(group.get, _KEYS)) for group in groups}
        fits = len(several) == 1 and type(several[0]) is SGD and len(rules) == 1
        for momentum, nesterov, dampening, cycled in rules:
            # without momentum there is nothing to dampen; schedules that change it note its range
            fits = fits and not cycled and not (momentum and dampening)
            found[devices] = (momentum or 0.0, bool(nesterov))
        if not fits:
            names = ", ".join(type(one).__name__ for one in several)
            raise ValueError(
                f"{method} needs one torch.optim.SGD of one momentum, without dampening and with "
                f"cycle_momentum: false in schedules, group {devices.group.label!r} has {names} "
                f"with {', '.join(_KEYS)} of {sorted(rules, key=str)}{remedy}"
            )
    return found


def check_plain(context: Context, method: str, remedy: str = "") -> None:
    """ValueError unless all clients train by SGD without momentum, under which alone a move over
    the sum of its learning rates is a mean gradient; see `momenta`.
    """
    if any(momentum for momentum, _ in momenta(context, method, remedy).values()):
        raise ValueError(
            f"{method} needs torch.optim.SGD without momentum: set momentum to 0 in the model's "
            f"optimizer and in those of groups{remedy}"
        )


def falls_by_epoch(context: Context) -> bool:
    """Whether the module's rate follows the epochs that a client has done, and not its steps."""
    _, schedules = _configured(context)
    return any(one.interval == "epoch" and not one.reduce_on_plateau for one in schedules)


def _configured(context: Context) -> tuple[list[Optimizer], list[Any]]:
    # a small device trains with torch alone
    from bhfl.engine.client.optim import configured

    return configured(context.module)
