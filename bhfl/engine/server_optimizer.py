"""Server optimisers: a torch optimiser on the pseudo-gradient ``w_t - mean`` (Reddi et al. 2021,
arXiv 2003.00295).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bhfl.engine.optimizers import OptimizerCallable
from bhfl.engine.types import Params, ServerState

if TYPE_CHECKING:
    from bhfl.engine.algorithm import Algorithm


@dataclass
class ServerOptimizer:
    """Steps any torch optimiser on means of client weights; its state comes in and goes out, none
    stays here.

    FedAvgM is ``torch.optim.SGD`` with momentum, FedAdam ``torch.optim.Adam``, FedYogi `Yogi`.

    Args:
        make: Makes an optimiser of parameters, such as ``lambda params: torch.optim.Adam(params,
            lr=0.01)``.
        trained: Names of the tensors that it steps on; the others, as frozen weights and buffers,
            take the mean.
    """

    make: OptimizerCallable
    trained: Collection[str]

    def step(
        self, params: Params, mean: Params, state: dict[str, Any] | None
    ) -> tuple[Params, dict[str, Any]]:
        """One step from `params` with ``params - mean`` for gradient; the new params and optimiser
        state.

        Where `mean` lacks a tensor, it stays as it is.
        """
        weights = {
            name: nn.Parameter(tensor.clone())
            for name, tensor in params.items()
            if name in self.trained
        }
        optimizer = self.make(list(weights.values()))
        if state is not None:
            # hyper-parameters are those of `make`; only moments and steps are carried on
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        for name, weight in weights.items():
            # torch's optimisers pass over it
            weight.grad = params[name] - mean[name] if name in mean else None
        optimizer.step()
        stepped = {name: weight.detach() for name, weight in weights.items()}
        return {**params, **mean, **stepped}, optimizer.state_dict()["state"]


def stepped(server: ServerState, mean: Params, optimizer: ServerOptimizer | None) -> ServerState:
    """The state whose model is `mean`, or where the optimiser's step on ``w_t - mean`` leads."""
    if optimizer is None:
        return replace(server, params={**server.params, **mean})
    # its state is kept in `extra`, so that moments are in checkpoints like all that lasts
    params, state = optimizer.step(server.params, mean, server.extra.get("server_optimizer"))
    return replace(server.with_extra(server_optimizer=state), params=params)


def server_optimizer(
    make: OptimizerCallable | None, algorithm: "Algorithm", module: nn.Module
) -> ServerOptimizer | None:
    """The server optimiser of a run, which steps on what `module` trains; None where `make` is.

    Raises:
        ValueError: The algorithm keeps no model on the server.
    """
    if not make:
        return None
    if not algorithm.communicates:
        name = type(algorithm).__name__
        raise ValueError(
            f"trainer.server_optimizer needs a model of the server's, and {name} has none"
        )
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return ServerOptimizer(make, trained)


class Yogi(Optimizer):
    """Adam with an additive second moment: ``v -= (1 - beta2) * sign(v - g^2) * g^2`` (Zaheer et
    al. 2018).

    Args:
        params: The parameters, as any torch optimiser takes them.
        lr: Step size.
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment; the federated paper's tau.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
    ) -> None:
        if not lr > 0 or not eps > 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"Yogi needs lr > 0, eps > 0 and betas in [0, 1), got {lr}, {eps}, {betas}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have gradients."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, grad: Tensor, options: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)
            # v_{-1} = tau^2, the least in Reddi et al., whose moments have no bias correction
            state["square"] = torch.full_like(weight, options["eps"] ** 2)
        mean = state["mean"]
        square = state["square"]
        squared = grad.square()
        first, second = options["betas"]
        mean.lerp_(grad, 1 - first)
        square.addcmul_(torch.sign(square - squared), squared, value=second - 1)
        weight.addcdiv_(mean, square.sqrt().add_(options["eps"]), value=-options["lr"])
