"""One file an algorithm: its client half and its server half."""

from typing import TYPE_CHECKING

from bhfl import lazily

# type checkers and editors do not follow __getattr__
if TYPE_CHECKING:
    from bhfl.algorithms.adaquantfl import AdaQuantFL
    from bhfl.algorithms.clipped import ClippedMean
    from bhfl.algorithms.ditto import Ditto
    from bhfl.algorithms.dpfedavg import DPFedAvg
    from bhfl.algorithms.fedavg import FedAvg
    from bhfl.algorithms.fedcom import FedCOM
    from bhfl.algorithms.fedcomgate import FedCOMGATE
    from bhfl.algorithms.feddyn import FedDyn
    from bhfl.algorithms.fedexp import FedExP
    from bhfl.algorithms.fedlq.fedlq import FedLQ
    from bhfl.algorithms.fednova import FedNova
    from bhfl.algorithms.fedpaq import FedPAQ
    from bhfl.algorithms.fedprox import FedProx
    from bhfl.algorithms.grouped import GroupedAvg, GroupedAvgAsymmetric
    from bhfl.algorithms.local import Local
    from bhfl.algorithms.moon import MOON
    from bhfl.algorithms.personal import FedBN, FedPer, FedRep
    from bhfl.algorithms.prowd.prowd import ProWD
    from bhfl.algorithms.robust import GeometricMedian, Krum, Median, TrimmedMean
    from bhfl.algorithms.scaffold import SCAFFOLD

_HOMES = {
    "AdaQuantFL": "adaquantfl",
    "ClippedMean": "clipped",
    "Ditto": "ditto",
    "DPFedAvg": "dpfedavg",
    "FedAvg": "fedavg",
    "FedBN": "personal",
    "FedCOM": "fedcom",
    "FedCOMGATE": "fedcomgate",
    "FedDyn": "feddyn",
    "FedExP": "fedexp",
    "FedLQ": "fedlq.fedlq",
    "FedNova": "fednova",
    "FedPAQ": "fedpaq",
    "FedPer": "personal",
    "FedProx": "fedprox",
    "FedRep": "personal",
    "GeometricMedian": "robust",
    "GroupedAvg": "grouped",
    "GroupedAvgAsymmetric": "grouped",
    "Krum": "robust",
    "Local": "local",
    "MOON": "moon",
    "Median": "robust",
    "ProWD": "prowd.prowd",
    "SCAFFOLD": "scaffold",
    "TrimmedMean": "robust",
}
__all__ = [
    "MOON",
    "SCAFFOLD",
    "AdaQuantFL",
    "ClippedMean",
    "DPFedAvg",
    "Ditto",
    "FedAvg",
    "FedBN",
    "FedCOM",
    "FedCOMGATE",
    "FedDyn",
    "FedExP",
    "FedLQ",
    "FedNova",
    "FedPAQ",
    "FedPer",
    "FedProx",
    "FedRep",
    "GeometricMedian",
    "GroupedAvg",
    "GroupedAvgAsymmetric",
    "Krum",
    "Local",
    "Median",
    "ProWD",
    "TrimmedMean",
]

__getattr__ = lazily(__name__, _HOMES)
"""The names above, loaded when asked for: a device that runs one method waits for no other."""
