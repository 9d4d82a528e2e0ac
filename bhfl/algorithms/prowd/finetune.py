"""Fine-tuning the dequantizer inside the round loop: state in, state out, on rank 0."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bhfl.algorithms.prowd.aggregation import means
from bhfl.algorithms.prowd.dequantizer import ProgressiveDequantizer
from bhfl.algorithms.prowd.options import Dequantizer
from bhfl.algorithms.prowd.pairs import WeightPairs
from bhfl.engine.types import Metrics, Params
from bhfl.quant import BitSpec

State = dict[str, Any]
"""Weights, optimiser state, and whether the chain is in use: what lasts of a dequantizer between
rounds.
"""


@dataclass(frozen=True)
class FineTuning:
    """What does not change from round to round.

    Args:
        options: When the dequantizer is trained, and what it is made of.
        ladder: Its widths.
        specs: The bit-widths of the low-bit groups.
        probe: A float32 network of its own for distillation, and the server's buffer; None for no
            distillation.
        seed: The seed of the run.
    """

    options: Dequantizer
    ladder: Sequence[int]
    specs: Sequence[BitSpec]
    probe: tuple[nn.Module, Tensor] | None
    seed: int

    def num_steps(self, round: int) -> int:
        """The optimiser steps that are due in a round, counted from 0."""
        since = round + 1 - self.options.warmup_rounds
        if since < 0 or since % self.options.period:
            return 0
        return self.options.steps if since else self.options.first_steps

    def initial(self) -> State:
        """The identity."""
        return {"weights": self._new().state_dict(), "optimizer": None, "active": False}

    def _new(self) -> ProgressiveDequantizer:
        options = self.options
        return ProgressiveDequantizer(
            self.ladder,
            arch=options.arch,
            bound=options.bound,
            lr=options.lr,
            distill_weight=options.distill_weight,
            seed=self.seed,
        )

    def tune(
        self, fabric: Fabric, state: State, states: Sequence[Params], steps: int, seed: int
    ) -> tuple[State, Metrics]:
        """Train on rank 0; every process gets the state and the metrics.

        Args:
            fabric: Moves tensors to the device, and runs backward.
            state: The dequantizer's, as it is.
            states: Float32 models to learn from.
            steps: Optimiser steps.
            seed: The seed of what is drawn from the models.
        """
        # trained once: another device might come to other bits, and all processes need the same
        result = self._train(fabric, state, states, steps, seed) if fabric.is_global_zero else None
        return fabric.broadcast(result)  # type: ignore[return-value]

    def _train(
        self, fabric: Fabric, state: State, states: Sequence[Params], steps: int, seed: int
    ) -> tuple[State, Metrics]:
        """`steps` steps from `state`; a chain that ends worse than the identity on held-out rows is
        discarded.
        """
        dequantizer = fabric.to_device(self._loaded(state))
        assert isinstance(dequantizer, ProgressiveDequantizer)
        if self.probe is not None:
            network, inputs = self.probe
            dequantizer.set_probe(fabric.to_device(network), fabric.to_device(inputs))
        optimizer = dequantizer.configure_optimizers()
        if state["optimizer"] is not None:
            # only the moments last: the learning rate is that of the options
            groups = optimizer.state_dict()["param_groups"]
            # Adam counts its steps in place, and the server's state has to stay what it is
            own = copy.deepcopy(state["optimizer"])
            optimizer.load_state_dict({"state": own, "param_groups": groups})
        pairs = WeightPairs(
            [fabric.to_device(dict(params)) for params in states],
            self.specs,
            dequantizer.bits,
            num_steps=steps,
            seed=seed,
        )
        rows = []
        for index, batch in enumerate(pairs.train_dataloader()):
            step = dequantizer.training_step(batch, index)
            optimizer.zero_grad()
            fabric.backward(step.pop("loss"))
            optimizer.step()
            rows.append({tag: float(value) for tag, value in step.items()})
        metrics = means(rows)
        active = dequantizer.is_better_than_identity(pairs.val_dataloader())
        metrics["dequantizer/active"] = float(active)
        if not active:
            warnings.warn(
                "the dequantizer is worse than the identity on held-out weights: its training is "
                "discarded and the identity used; a smaller algorithm.dequantizer.lr may help",
                stacklevel=2,
            )
            return self.initial(), metrics
        trained = {
            "weights": {name: value.cpu() for name, value in dequantizer.state_dict().items()},
            "optimizer": tree_map_only(Tensor, Tensor.cpu, optimizer.state_dict()["state"]),
            "active": True,
        }
        return trained, metrics

    def chain(self, state: State) -> ProgressiveDequantizer | None:
        """The trained dequantizer, or None for the identity."""
        return self._loaded(state) if state["active"] else None

    def _loaded(self, state: State) -> ProgressiveDequantizer:
        dequantizer = self._new()
        dequantizer.load_state_dict(state["weights"])
        return dequantizer
