"""Whether what a hook of an algorithm hands over can be used; where it cannot, an error that names
the hook.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from bhfl.comm.wire import KINDS
from bhfl.engine.checkpoint import CheckpointError, check_storable
from bhfl.engine.types import Params, ServerState
from bhfl.quant import QuantizedTensor


class ReturnError(ValueError):
    """A hook returned what cannot be used; the message names class, hook, tensor, rule and
    value.
    """


class ServerReturnError(ReturnError):
    """One of a hook of the server half: no client is to blame, so it ends the run."""


def name_of(algorithm: object, hook: str) -> str:
    """What errors call a hook: ``FedAvg.downlink``."""
    return f"{type(algorithm).__name__}.{hook}"


def check_tensors(
    hook: str,
    returned: Any,
    like: Mapping[str, Tensor] | None = None,
    *,
    whole: bool = False,
    codes: bool = False,
    known: Mapping[str, Tensor] | None = None,
) -> None:
    """Hold tensors by name that a hook returned to what they must be.

    Args:
        hook: What the error calls it, such as ``FedAvg.server_update``.
        returned: What it returned.
        like: Tensors that have the names, shapes and dtypes that are allowed, for finite values;
            None allows any.
        whole: Whether every name of `like` must be there.
        codes: Whether quantised tensors are allowed.
        known: Tensors that were held to all this before; the very same objects are not looked at
            again.

    Raises:
        ReturnError: Naming the first tensor that is wrong.
    """
    if not isinstance(returned, Mapping):
        raise ReturnError(
            f"{hook} must return a dict of tensors by name, got {type(returned).__name__}"
        )
    if like is not None and whole and (missing := [name for name in like if name not in returned]):
        others = [name for name in returned if name not in like]
        instead = f"; got {others[0]!r}, which the model does not have" if others else ""
        raise ReturnError(
            f"{hook} must return every tensor of the model, {missing[0]!r} is missing{instead}"
        )
    for name, value in returned.items():
        if not isinstance(name, str):
            raise ReturnError(f"{hook} must return tensors by name, got the name {name!r}")
        if like is not None and name not in like:
            raise ReturnError(
                f"{hook} must return tensors of the model, got {name!r}, which it does not have"
            )
        if known is not None and known.get(name) is value:
            continue
        if problem := _wrong(value, None if like is None else like[name], codes):
            raise ReturnError(f"{hook}: {name!r} must {problem}")


def check_mean(hook: str, mean: Any, params: Params, expected: Collection[str]) -> None:
    """Hold a mean of clients' models to what it must be.

    Args:
        hook: What the error calls it.
        mean: Tensors by name.
        params: The model, which has the names and shapes that are allowed.
        expected: Names of what clients are asked for.

    Raises:
        ReturnError: Naming the first tensor that is wrong or missing.
    """
    check_tensors(hook, mean, params)
    if missing := (params.keys() & expected) - mean.keys():
        raise ReturnError(
            f"{hook} must hold every tensor that clients send, {min(missing)!r} is missing"
        )


def _wrong(value: Any, like: Tensor | None, codes: bool) -> str:
    """What is wrong with a tensor; empty if nothing is."""
    if isinstance(value, QuantizedTensor) and codes:  # `encode` checks the rest
        return _wrong_shape(value.codes, like)
    if problem := _wrong_kind(value) or _wrong_shape(value, like):
        return problem
    if like is not None and value.dtype != like.dtype:
        return f"be {like.dtype}, got {value.dtype}"
    if like is not None and not is_finite(value):
        return "be finite, got NaN or infinity"
    return ""


def _wrong_kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"be a tensor, got {type(value).__name__}"
    kind = "a tensor without memory (meta)" if value.is_meta else f"{value.dtype}, {value.layout}"
    if value.layout == torch.strided and not value.is_meta and value.dtype in KINDS:
        return ""
    return f"be a dense tensor of a kind that can be sent, got {kind}"


def _wrong_shape(value: Tensor, like: Tensor | None) -> str:
    if like is None or value.shape == like.shape:
        return ""
    return f"have shape {tuple(like.shape)}, got {tuple(value.shape)}"


def is_finite(value: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; one pass over it."""
    if not value.numel() or not value.is_floating_point():
        return True
    # it passes NaN on, and needs no mask as large as the tensor, as isfinite would
    low, high = torch.aminmax(value.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))


def check_aggregate(hook: str, aggregate: Any, params: Mapping[str, Tensor]) -> None:
    """Hold what an aggregator made of a round's updates to shapes of the model and finite values.

    Args:
        hook: What the error calls it.
        aggregate: A nest of containers; where it is a dict of tensors, those with a name of the
            model have its shapes.
        params: The model.

    Raises:
        ReturnError: Naming the first tensor that is wrong.
    """
    for name, value in aggregate.items() if isinstance(aggregate, Mapping) else ():
        like = params.get(name)
        if isinstance(value, Tensor) and (problem := _wrong_shape(value, like)):
            raise ReturnError(f"{hook}: {name!r} must {problem}")
    for path, value in tensors_in(aggregate):
        if value.layout == torch.strided and not is_finite(value):
            raise ReturnError(f"{hook}: {path or 'the tensor'} must be finite, got NaN or infinity")


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a nest of containers, each with the way to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), f"{path}.{field.name}")


def check_server(hook: str, returned: Any, before: ServerState) -> None:
    """Hold a server state that a hook returned to the one before it.

    Raises:
        ReturnError: It is none, has other tensors, or numbers that are no numbers.
    """
    if not isinstance(returned, ServerState):
        raise ReturnError(f"{hook} must return a ServerState, got {type(returned).__name__}")
    check_tensors(hook, returned.params, before.params, whole=True, known=before.params)
    if not isinstance(returned.extra, dict):
        raise ReturnError(
            f"{hook} must return a ServerState whose extra is a dict, got "
            f"{type(returned.extra).__name__}"
        )
    check_metrics(f"{hook} must return a ServerState whose metrics are", returned.metrics)


def check_metrics(rule: str, metrics: Any) -> None:
    """ReturnError unless `metrics` holds plain numbers by tag; `rule` begins the message."""
    if not isinstance(metrics, Mapping):
        raise ReturnError(f"{rule} numbers by tag, got {type(metrics).__name__}")
    for tag, value in metrics.items():
        if not isinstance(tag, str) or not isinstance(value, int | float):
            raise ReturnError(f"{rule} numbers by tag, got {type(value).__name__} as {tag!r}")


def check_kept(hook: str, state: Any) -> None:
    """ReturnError unless a hook returned what a client can keep: tensors and plain values by
    name.
    """
    if not isinstance(state, dict):
        raise ReturnError(f"{hook} must be a dict of tensors, got {type(state).__name__}")
    try:
        check_storable(state, hook)
    except CheckpointError as error:
        raise ReturnError(str(error)) from None
