"""What is told before the first round, because it trains on without an error and to little
effect.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.modules.batchnorm import _BatchNorm

from bhfl.engine.devices import FLOAT, Devices
from bhfl.engine.downlink import bits_down
from bhfl.engine.roster import one_of_each
from bhfl.engine.types import Client, FederatedData
from bhfl.quant import layer_weights
from bhfl.settings import Settings

_SHARE = 0.5
"""Low-bit groups of which a smaller share of the weights is at their bits are told of."""
_LEFT = 0.5
"""BatchNorm that keeps more than this of its first statistics after a client's round is told of."""
_FINE = 8
"""A model that clients are sent at fewer bits than these and theirs is told of."""
_NAMED = 5
_GRAPHS = 4
"""What `torch.compile` makes of a forward at one bit-width: full and last batches, in training and
in evaluation.
"""

_PUBLIC = (
    "the guarantee is of the models alone: what the run folder tells of clients is outside of it, "
    "their metrics, train/loss among them, clients.csv, who took part and what became of whom, and "
    "so is the seed, which the noise follows"
)


def forewarn(
    module: nn.Module,
    clients: Sequence[Client],
    data: FederatedData,
    settings: Settings,
    *,
    fresh: bool,
) -> None:
    """Warn of low-bit groups that compute in float32 for the most part, of backends that do not
    serve all layers, of BatchNorm that hardly moves, and of more bit-widths than a compiled model
    has graphs for.

    Args:
        module: The model, whose layers are swapped already.
        clients: The fleet.
        data: Already split.
        settings: The trainer's settings.
        fresh: The run begins with the first statistics of BatchNorm; a resumed one has those of its
            clients.
    """
    told = [_PUBLIC] if settings.aggregation.algorithm.private else []
    device = next(module.parameters()).device.type
    groups = [client.devices for client in one_of_each(clients)]
    low = dict.fromkeys(its.group.label for its in groups if its.spec.weights < 32)
    if low and (layers := _mostly_float(module)):
        told += [f"{group} clients {layers}" for group in low]
    if fresh and not settings.aggregation.reestimate_norm:
        told.append(_slow_norms(module, partial(_most_steps, clients, data, settings)))
    for devices in groups:
        told += [_coarsely_sent(devices), _partly_served(module, devices), devices.caution(device)]
    if is_compiled(module):
        told.append(_too_many_graphs(len({devices.bits for devices in groups} | {FLOAT.bits})))
    # a group whose bits change has a word for each of them
    for text in filter(None, dict.fromkeys(told)):
        warnings.warn(text, stacklevel=2)


def _most_steps(clients: Sequence[Client], data: FederatedData, settings: Settings) -> int:
    """Optimiser steps of the client that makes most of them in a round."""
    batches: dict[Devices, int] = {}
    for client in clients:
        if client.num_examples:
            most = batches.get(client.devices, 0)
            batches[client.devices] = max(most, data.num_batches(client.id))
    steps = 0
    for devices, most in batches.items():
        steps = max(steps, devices.training(settings.training).planned_steps(most))
    return steps


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was called on a model that is lent, or on a part of it, or
    ``compile()`` of either.
    """
    # by torch.compile(part), by part.compile(), and by `Loan`, which lends the compiled forward
    return any(
        isinstance(part, OptimizedModule)
        or getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
        for part in module.modules()
    )


def _too_many_graphs(num_specs: int) -> str:
    """That the compiler gives up at so many bit-widths, the server's float32 among them; it says so
    in a log alone.
    """
    config: Any = torch._dynamo.config
    wanted = _GRAPHS * num_specs
    if wanted <= config.recompile_limit:
        return ""
    return (
        f"the model is compiled anew for each of {num_specs} bit-widths, up to {wanted} times, and "
        f"torch runs it uncompiled after {config.recompile_limit}: set "
        f"torch._dynamo.config.recompile_limit = {wanted} before the run"
    )


def _coarsely_sent(devices: Devices) -> str:
    """That a model reaches its clients at fewer bits than they compute with."""
    rule = devices.downlink
    bits = bits_down(rule.bits, devices.spec)
    if rule.send == "differences" or bits >= min(_FINE, devices.spec.weights):
        return ""
    return (
        f"trainer.downlink {rule} rounds the model of {devices.group.label} clients to "
        f"{bits} bits before each round, and what they had learned below that is lost; with send: "
        "differences none of it is"
    )


def _mostly_float(module: nn.Module) -> str:
    """Which layers stay float32 at any bits; empty where most weights do not."""
    low = set(layer_weights(module))
    quantised = 0
    sizes: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        # frozen layers stay float32, or not, as their group says
        if not parameter.requires_grad:
            continue
        if name in low:
            quantised += parameter.numel()
            continue
        owner = name.rpartition(".")[0]
        kind = type(module.get_submodule(owner)).__name__.removeprefix("Quant")
        sizes[f"{owner or name} ({kind})"] += parameter.numel()
    total = quantised + sizes.total()
    if quantised >= _SHARE * total:
        return ""
    named = ", ".join(layer for layer, _ in sizes.most_common(_NAMED))
    if len(sizes) > _NAMED:
        named += f" and {len(sizes) - _NAMED} more"
    return (
        f"hold {quantised / total:.0%} of the model's weights at their bits, the rest stays "
        f"float32: {named}; layers of torch's own classes Linear, Conv, Embedding and "
        "MultiheadAttention are quantised"
    )


def _partly_served(module: nn.Module, devices: Devices) -> str:
    """Which share of its low-bit weights a group's backend computes; empty where it is all of
    them, or where the backend is to choose.
    """
    backend = devices.group.backend
    if backend == "fake" or backend.startswith("auto"):
        return ""
    sizes: Counter[str] = Counter()
    for name in layer_weights(module):
        layer = name.rpartition(".")[0]
        if not devices.spec_of(name).is_float:
            sizes[layer] += module.get_parameter(name).numel()
    others = [layer for layer in sizes if layer not in devices.backends]
    if not others:
        return ""
    share = 1 - sum(sizes[layer] for layer in others) / sizes.total()
    named = ", ".join(others[:_NAMED])
    if len(others) > _NAMED:
        named += f" and {len(others) - _NAMED} more"
    return (
        f"{devices.group.label} clients compute {share:.0%} of their low-bit weights by "
        f"{backend!r}, which cannot serve {named}: these run as 'fake'"
    )


def _slow_norms(module: nn.Module, most_steps: Callable[[], int]) -> str:
    """The BatchNorm whose running statistics move least in a round, where that is little; else an
    empty string.

    Args:
        module: The model.
        most_steps: Counts the steps of a round, which takes long for many clients.
    """
    slow = []
    for name, norm in module.named_modules():
        moves = isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.training
        # without a momentum statistics are the mean of all batches, and the first ones are gone
        if moves and norm.momentum is not None:
            slow.append((norm.momentum, name))
    if not slow or not (steps := most_steps()):
        return ""
    momentum, name = min(slow)
    left = (1 - momentum) ** steps
    if left <= _LEFT:
        return ""
    return (
        f"BatchNorm {name} has momentum {momentum:g}: after the {steps} steps of a round "
        f"{left:.0%} of its first statistics are left, which evaluation then uses; give it a "
        f"momentum of {1 - 0.1 ** (1 / steps):.2g} or more, or set trainer.reestimate_norm: true "
        "and data.holdout"
    )
