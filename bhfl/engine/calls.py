"""How a module's steps and hooks are called: with as many arguments as they take."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn


def call_step(step: Callable[..., Any], batch: Any, batch_idx: int) -> Any:
    """Call ``training_step``, ``validation_step`` or ``test_step`` with as many arguments as it
    takes.

    ``batch_idx`` may be left out, as in Lightning, and a ``dataloader_idx`` is 0.
    """
    # asked of the function, because bound methods in the cache would keep their module alive
    more = _more(_function(step), inspect.ismethod(step))
    return step(batch, *(batch_idx if name == "batch_idx" else 0 for name in more))


def defines_forward(module: nn.Module) -> bool:
    """Whether a module can be called with inputs: nn.Module and LightningModule themselves have a
    ``forward`` that raises.
    """
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    ours = owner.__name__ == "LightningModule" and owner.__module__.startswith("lightning.")
    return owner is not nn.Module and not ours


def call_batch_hook(hook: Callable[..., Any], *arguments: Any) -> Any:
    """Call a hook around a batch of an evaluation; a ``dataloader_idx`` that it insists on is 0."""
    insists = _insists(_function(hook), len(arguments) + inspect.ismethod(hook))
    return hook(*arguments, 0) if insists else hook(*arguments)


@lru_cache(maxsize=256)
def _insists(hook: Callable[..., Any], given: int) -> bool:
    """Whether a hook has one more argument than are given, without a default."""
    more = list(inspect.signature(hook).parameters.values())[given : given + 1]
    return any(p.name == "dataloader_idx" and p.default is inspect.Parameter.empty for p in more)


def _function(step: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(step, "__func__", step)


@lru_cache(maxsize=256)
def _more(step: Callable[..., Any], bound: bool) -> tuple[str, ...]:
    """What a step takes by position besides the batch, and itself where it is `bound`; asked once
    of each function.
    """
    kinds = inspect.Parameter
    parameters = inspect.signature(step).parameters.values()
    named = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    more = [p for p in parameters if p.kind in named][1 + bound :]
    if not more:
        return ("batch_idx",) if any(p.kind is kinds.VAR_POSITIONAL for p in parameters) else ()
    first = "dataloader_idx" if more[0].name == "dataloader_idx" else "batch_idx"
    return (first, *("dataloader_idx" for p in more[1:] if p.default is kinds.empty))
