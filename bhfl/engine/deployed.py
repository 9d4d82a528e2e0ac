"""The models of a run as its groups run them, in a plain module."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from bhfl.checks import suggestion
from bhfl.engine.algorithm import Algorithm
from bhfl.engine.buffers import Buffers, NormPolicy
from bhfl.engine.client.plain import PlainWorker
from bhfl.engine.devices import FLOAT, Devices, finest
from bhfl.engine.resume import check_same
from bhfl.engine.types import ServerState
from bhfl.quant import BitSpec, dequantize_, quantized_state, set_spec_
from bhfl.quant.codes import float_tensors

Module = TypeVar("Module", bound=nn.Module)


class Deployed:
    """The models that a server state holds: the server's own, and that of each group.

    Args:
        server: The state.
        groups: The devices of each group, in the fleet's order.
        norm: What became of BatchNorm's running statistics, see `FederatedTrainer`.
        algorithm: The run's, prepared for its fleet: it knows what the model of a group is.
    """

    def __init__(
        self, server: ServerState, groups: Sequence[Devices], norm: NormPolicy, algorithm: Algorithm
    ) -> None:
        self.server = server
        self.groups = {devices.group.label: devices for devices in groups}
        self.norm = norm
        self.algorithm = algorithm

    @torch.no_grad()
    def put_(self, module: Module, group: str | None) -> Module:
        """Put weights into a module of the run's architecture.

        Args:
            module: Changed in place; its layers are torch's own again afterwards.
            group: A group of the fleet, whose weights lie on the grid of its bits, as its devices
                compute with them; by default the server's model in float32.

        Returns:
            The module.

        Raises:
            ValueError: There is no such group, its model is not whole without its clients, or the
                algorithm keeps none on the server.
            CheckpointError: The module is another one than the run's.
        """
        if not self.algorithm.communicates:
            raise ValueError(
                f"{type(self.algorithm).__name__} keeps no global model: each client has a model "
                "of its own"
            )
        if group is not None and group not in self.groups:
            raise ValueError(
                f"group must be one of the run's, got {group!r}"
                f"{suggestion(str(group), self.groups)}"
            )
        devices = FLOAT if group is None else self.groups[group]
        worker = PlainWorker(module, next(module.parameters()).device)
        try:
            devices.match_(module, self.server.buffers["frozen"])
            worker.load_global(self._tensors(worker, devices, group), devices)
            state = float_tensors(quantized_state(module))
        finally:
            dequantize_(set_spec_(module, BitSpec()))
        module.load_state_dict(state)
        return module

    def _tensors(
        self, worker: PlainWorker, devices: Devices, group: str | None
    ) -> Mapping[str, Tensor]:
        """The whole model of a group, by the names of the module's state."""
        server = self.server
        state = worker.state()
        labels = [one.bits for one in self.groups.values()]
        buffers = Buffers(worker.module, state, self.norm, labels)
        first: Mapping[str, Tensor] = server.buffers["first"]
        if group is None:
            own = buffers.of(server, finest(self.groups.values()))
            found = {**first, **server.params, **own, **server.buffers["frozen"]}
        else:
            params = self.algorithm.group_params(server, devices.bits)
            found = {**params, **buffers.of(server, devices.bits), **server.buffers["frozen"]}
            stays = buffers.statistics if self.norm == "local" else []
            if missing := [*stays, *(name for name in first if name not in found)]:
                raise ValueError(
                    f"the model of group {group!r} is not whole on the server: {missing[0]} stays "
                    "with its clients"
                )
        check_same(state, found)
        return found
