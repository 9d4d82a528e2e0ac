"""Fine-tuning the dequantizer inside the round loop: state in, state out, on rank 0."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn

from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
from bhfl.algorithms.prowd.pairs import WeightPairs
from bhfl.engine.types import Params
from bhfl.quant import BitSpec

State = dict[str, Any]
"""Weights, optimiser state, and whether the chain is in use: what lasts of a dequantizer between
rounds.
"""


@dataclass(frozen=True)
class FineTuning:
    """What does not change from round to round.

    Args:
        make: A fresh dequantizer.
        specs: Of the low-bit groups.
        network: A float32 network of its own for distillation, and `inputs`, the server's buffer;
            None for neither.
    """

    make: Callable[[], ProgressiveDequantizer]
    specs: Sequence[BitSpec]
    network: nn.Module | None
    inputs: Tensor | None

    def initial(self) -> State:
        """The identity."""
        return {"weights": self.make().state_dict(), "optimizer": None, "active": False}

    def tune(
        self, fabric: Fabric, state: State, states: Sequence[Params], steps: int, seed: int
    ) -> tuple[State, dict[str, float]]:
        """`steps` steps on pairs from `states`, on rank 0; every process gets the state and the
        metrics.
        """
        result = self.train(fabric, state, states, steps, seed) if fabric.is_global_zero else None
        return fabric.broadcast(result)  # type: ignore[return-value]

    def train(
        self, fabric: Fabric, state: State, states: Sequence[Params], steps: int, seed: int
    ) -> tuple[State, dict[str, float]]:
        """`steps` steps from `state`; a chain that ends worse than the identity on held-out rows is
        discarded.
        """
        dequantizer = fabric.to_device(self.make())
        assert isinstance(dequantizer, ProgressiveDequantizer)
        dequantizer.load_state_dict(state["weights"])
        if self.network is not None and self.inputs is not None:
            fabric.to_device(self.network)
            dequantizer.set_probe(self.network, fabric.to_device(self.inputs))
        optimizer = dequantizer.configure_optimizers()
        if state["optimizer"] is not None:
            groups = optimizer.state_dict()["param_groups"]
            own = copy.deepcopy(state["optimizer"])  # steps are counted in place
            optimizer.load_state_dict({"state": own, "param_groups": groups})
        pairs = WeightPairs(
            [fabric.to_device(dict(params)) for params in states],
            self.specs,
            dequantizer.bits,
            num_steps=steps,
            seed=seed,
        )
        sums: dict[str, list[float]] = {}
        for index, batch in enumerate(pairs.train_dataloader()):
            step = dequantizer.training_step(batch, index)
            optimizer.zero_grad()
            fabric.backward(step["loss"])
            optimizer.step()
            for tag, value in step.items():
                sums.setdefault(tag, []).append(float(value.detach()))
        metrics = {tag: sum(values) / len(values) for tag, values in sums.items() if tag != "loss"}
        active = dequantizer.is_better_than_identity(pairs.val_dataloader())
        metrics["dequantizer/active"] = float(active)
        if not active:
            warnings.warn(
                "the dequantizer is worse than the identity on held-out weights: its training is "
                "discarded and the identity used; a smaller dequantizer_lr may help",
                stacklevel=2,
            )
            return self.initial(), metrics
        weights = {name: tensor.cpu() for name, tensor in dequantizer.state_dict().items()}
        return {
            "weights": weights,
            "optimizer": _on_cpu(optimizer.state_dict()["state"]),
            "active": True,
        }, metrics

    def chain(self, state: State) -> ProgressiveDequantizer | None:
        """The trained dequantizer, or None for the identity."""
        if not state["active"]:
            return None
        dequantizer = self.make()
        dequantizer.load_state_dict(state["weights"])
        return dequantizer


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of the clients' network that training them does not touch."""
    return copy.deepcopy(module).requires_grad_(False).cpu()


def _on_cpu(state: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in slots.items()
        }
        for key, slots in state.items()
    }
