"""The round loop: clients, cohorts, payloads, exact sums, checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bhfl.engine.algorithm import Algorithm, LocalRun
    from bhfl.engine.trainer import FederatedTrainer, TooFewClientsError

__all__ = ["Algorithm", "FederatedTrainer", "LocalRun", "TooFewClientsError"]


def __getattr__(name: str) -> Any:
    """The names above, loaded when asked for: who wants `bhfl.engine.folder` alone waits for no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "algorithm" if name in ("Algorithm", "LocalRun") else "trainer"
    return getattr(import_module(f"{__name__}.{module}"), name)
