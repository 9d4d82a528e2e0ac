"""The round loop: clients, cohorts, payloads, exact sums, checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhfl.engine.algorithm import Algorithm, LocalRun
    from bhfl.engine.availability import Availability
    from bhfl.engine.best import Best
    from bhfl.engine.callback import Callback
    from bhfl.engine.downlink import Downlink
    from bhfl.engine.refusal import TooFewClientsError
    from bhfl.engine.result import FitResult
    from bhfl.engine.trainer import FederatedTrainer

_HOMES = {
    "Algorithm": "algorithm",
    "Availability": "availability",
    "Best": "best",
    "Callback": "callback",
    "Downlink": "downlink",
    "FederatedTrainer": "trainer",
    "FitResult": "result",
    "LocalRun": "algorithm",
    "TooFewClientsError": "refusal",
}
__all__ = [
    "Algorithm",
    "Availability",
    "Best",
    "Callback",
    "Downlink",
    "FederatedTrainer",
    "FitResult",
    "LocalRun",
    "TooFewClientsError",
]


def __getattr__(name: str) -> Any:
    """The names above, loaded when asked for: who wants `bhfl.engine.folder` alone waits for no
    torch.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
