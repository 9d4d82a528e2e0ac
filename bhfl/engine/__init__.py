"""The round loop: clients, cohorts, payloads, exact sums, checkpoints."""

from typing import TYPE_CHECKING

from bhfl import lazily

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

__getattr__ = lazily(__name__, _HOMES)
"""The names above, loaded when asked for: who wants `bhfl.engine.folder` alone waits for no
torch.
"""
