"""The round loop: clients, cohorts, payloads, exact sums, checkpoints."""

from bhfl.engine.algorithm import Algorithm, LocalRun
from bhfl.engine.trainer import FederatedTrainer, TooFewClientsError

__all__ = ["Algorithm", "FederatedTrainer", "LocalRun", "TooFewClientsError"]
