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
    own = _configured(context.module)
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
                f"with {', '.join(_KEYS)} of {' and '.join(sorted(map(str, rules)))}{remedy}"
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


def _configured(module: Any) -> list[Optimizer]:
    # configure_optimizers may return many forms, all of which Lightning's own parser knows
    from lightning.pytorch.core.optimizer import _configure_optimizers

    return list(_configure_optimizers(module.configure_optimizers())[0])
