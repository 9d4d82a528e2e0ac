"""One file an algorithm: its client half and its server half."""

from bhfl.algorithms.adaquantfl import AdaQuantFL
from bhfl.algorithms.fedavg import FedAvg
from bhfl.algorithms.fedcom import FedCOM
from bhfl.algorithms.fedcomgate import FedCOMGATE
from bhfl.algorithms.fedlq.fedlq import FedLQ
from bhfl.algorithms.fedpaq import FedPAQ
from bhfl.algorithms.fedprox import FedProx
from bhfl.algorithms.grouped import GroupedAvg, GroupedAvgAsymmetric
from bhfl.algorithms.local import Local
from bhfl.algorithms.prowd.prowd import ProWD

__all__ = [
    "AdaQuantFL",
    "FedAvg",
    "FedCOM",
    "FedCOMGATE",
    "FedLQ",
    "FedPAQ",
    "FedProx",
    "GroupedAvg",
    "GroupedAvgAsymmetric",
    "Local",
    "ProWD",
]
