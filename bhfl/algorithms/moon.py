"""MOON. Li, He, Song, CVPR 2021, https://arxiv.org/abs/2103.16257."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity, softplus

from bhfl.checks import checked, not_negative, positive, suggestion
from bhfl.engine.algorithm import Algorithm, Context, LocalRun
from bhfl.engine.calls import defines_forward
from bhfl.engine.context import named
from bhfl.engine.types import Params, Tensors, only
from bhfl.quant.norms import evaluating

PREVIOUS = "previous/"
"""Begins the names of a client's last model in its state."""


class MOON(Algorithm):
    """FedAvg whose clients also learn a representation ``z`` that is like the global model's,
    ``z_g``, and unlike that of their own last model, ``z_p``. To the loss of a batch they add

    ``mu * mean(-log(exp(cos(z, z_g) / T) / (exp(cos(z, z_g) / T) + exp(cos(z, z_p) / T))))``.

    ``z_g`` and ``z_p`` are computed at the client's bits, in evaluation mode, by the module's
    ``forward`` of the first entry of the batch, or of the whole of it where it is no list or tuple.
    A client without a last model learns as FedAvg's: both models are the same to it, and the term
    has no gradient; one that has lost it begins so anew. A step takes two forward passes more.

    Args:
        features: The name of the module whose output is the representation, such as ``net.fc1``;
            all but its first dimension are one.
        mu: Weight of the term. The paper takes the best of {0.1, 1, 5, 10}; 0 is FedAvg to the bit.
        temperature: ``T``; 0.5 in the paper.

    Raises:
        ValueError: `features` is no text, `mu` or `temperature` is out of its range; in `setup`,
            the model has no such module, no ``forward``, or optimises manually.
    """

    begins_anew = True

    def __init__(self, features: str, mu: float = 1.0, temperature: float = 0.5) -> None:
        self.features = checked("MOON.features", features, _name)
        self.mu = checked("MOON.mu", mu, not_negative)
        self.descends = mu > 0
        self.temperature = checked("MOON.temperature", temperature, positive)

    def setup(self, context: Context) -> None:
        """The model can be called, and has the module."""
        module = context.module
        names = [name for name, _ in module.named_modules() if name]
        if self.features not in names:
            raise ValueError(
                "MOON.features must be the name of a module of the model, got "
                f"{self.features!r}{suggestion(self.features, names)}"
            )
        if not defines_forward(module):
            raise ValueError(
                "MOON computes representations through the model's forward(inputs), which "
                f"{type(module).__name__} does not define"
            )

    def client_loss(self, run: LocalRun, batch: Any, batch_idx: int) -> Any:
        """The module's own loss, and the contrast."""
        if not self.mu:
            return run.training_step(batch, batch_idx)
        with self._seen(run.module) as seen:
            output = run.training_step(batch, batch_idx)
        if output is None:
            return None
        # in a client's first round too, so that what is wrong with it ends no later one
        here = self._representation(seen)
        if not (last := named(run.state, PREVIOUS)):
            return output
        alike, unlike = (
            cosine_similarity(here, self._of(model, run.module, batch), dim=1)
            for model in (run.received, last)
        )
        term = self.mu * softplus((unlike - alike) / self.temperature).mean()
        if isinstance(output, Mapping):
            return {**output, "loss": output["loss"] + term}
        return output + term

    def uplink(self, run: LocalRun) -> Tensors | None:
        """FedAvg's; the client keeps its model."""
        if self.mu:
            for name, value in _once(run.module.state_dict(), run.module).items():
                # the rest is frozen, and the same in all models
                if name in run.received:
                    run.state[PREVIOUS + name] = value.cpu().clone()
        return super().uplink(run)

    @contextmanager
    def _seen(self, module: nn.Module) -> Iterator[list[Tensor]]:
        """What the layer puts out inside."""
        seen: list[Tensor] = []
        layer = module.get_submodule(self.features)
        handle = layer.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            yield seen
        finally:
            handle.remove()

    def _representation(self, seen: list[Tensor]) -> Tensor:
        """The last of what was seen, [samples, features]."""
        if not seen:
            raise RuntimeError(f"MOON.features: the model never called its module {self.features}")
        found = seen[-1]
        if not isinstance(found, Tensor):
            raise TypeError(
                f"MOON.features: {self.features} must put out a tensor, got {type(found).__name__}"
            )
        return found.flatten(1).float()

    @torch.no_grad()
    def _of(self, weights: Params, module: nn.Module, batch: Any) -> Tensor:
        """The representation by other weights."""
        inputs = batch[0] if isinstance(batch, list | tuple) else batch
        try:
            with evaluating(module), self._seen(module) as seen:
                functional_call(module, _once(weights, module), (inputs,))
        except Exception as error:
            if not isinstance(batch, Mapping):
                raise
            raise TypeError(
                f"MOON gives {type(module).__name__}.forward the whole of a batch that is a "
                f"mapping, and it does not take that ({type(error).__name__}: {error}): let "
                "data.inputs name the column of the inputs"
            ) from error
        return self._representation(seen)


def _name(value: Any) -> str:
    """What is wrong with the name of a module."""
    return "" if isinstance(value, str) else f"must be the name of a module, got {value!r}"


def _once(tensors: Params, module: nn.Module) -> Params:
    """Each tensor by its first name alone: several copies of a tied one cannot take its place."""
    owned = dict([*module.named_parameters(), *module.named_buffers()])
    return only(tensors, owned)
