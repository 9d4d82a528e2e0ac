"""What a client works with in a run, on a machine where torch alone trains its module."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from bhfl.engine.algorithm import Algorithm
from bhfl.engine.buffers import Buffers, NormPolicy
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.client.registered import frozen_in
from bhfl.engine.fingerprint import noted_backends
from bhfl.engine.own import Own
from bhfl.engine.roster import Roster
from bhfl.engine.state import check_state
from bhfl.engine.types import FederatedData
from bhfl.told import Told

_LIGHTNING = ("lightning.", "pytorch_lightning.")


class Alone:
    """What a `bhfl.engine.session.Session` is to a client under Lightning.

    Args:
        module: A plain module, see `bhfl.engine.client.plain.PlainWorker`; it is changed in place.
        data: Its samples.
        algorithm: Whose client half trains it; it is prepared.
        fleet: All clients.
        norm: What becomes of running statistics, see `FederatedTrainer`.

    Raises:
        ValueError: The module needs Lightning, or it and the fleet do not fit together.
    """

    def __init__(
        self,
        module: nn.Module,
        data: FederatedData,
        algorithm: Algorithm,
        fleet: Roster,
        norm: NormPolicy,
    ) -> None:
        check_plain(module)
        self.data = data
        self.algorithm = algorithm
        self.fleet = fleet
        frozen = frozen_in(module)
        algorithm.prepare(module, fleet)
        self.worker = PlainWorker(module)
        for devices in fleet.devices:
            # raises now, not in the first round, where the model cannot take it
            devices.match_(module, frozen)
            devices.set_(module)
        bits = list(dict.fromkeys(devices.bits for devices in fleet.devices))
        state = self.worker.state()
        buffers = Buffers(module, state, norm, bits, frozen)
        first = buffers.first_state(state)
        self.worker.untrained = first.buffers["frozen"]
        self.own = Own.of(first, buffers, bits[0], algorithm)

    def use_backends(self, told: Told) -> None:
        """Compute the layers by what the run was told.

        Raises:
            ValueError: There is no such layer or backend.
        """
        for devices in self.fleet.devices:
            devices.use_(self.worker.module, noted_backends(told, devices.key))


def check_plain(module: Any) -> None:
    """Refuse a module that torch alone cannot train.

    Raises:
        ValueError: It derives from Lightning's, or has not the methods that are called.
    """
    name = type(module).__name__
    if any(base.__module__.startswith(_LIGHTNING) for base in type(module).__mro__):
        raise ValueError(
            f"model must be a plain torch.nn.Module where torch alone trains it, and {name} is a "
            "LightningModule: give its network, with a loss, or join with the package bhfl"
        )
    for method in ("training_step", "configure_optimizers"):
        if not callable(getattr(module, method, None)):
            raise ValueError(
                f"model must have the method {method}, and {name} has none: give it as the net of "
                "bhfl.models.Supervised, which has a loss and an optimizer"
            )
    made = module.configure_optimizers()
    if not isinstance(made, Optimizer):
        raise ValueError(
            f"{name}.configure_optimizers must return one torch.optim.Optimizer where torch alone "
            f"trains it, got {type(made).__name__}: schedules need the package bhfl"
        )
    check_state(module)
