"""One file an algorithm: its client half and its server half."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# type checkers and editors do not follow __getattr__
if TYPE_CHECKING:
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

_HOMES = {
    "AdaQuantFL": "adaquantfl",
    "FedAvg": "fedavg",
    "FedCOM": "fedcom",
    "FedCOMGATE": "fedcomgate",
    "FedLQ": "fedlq.fedlq",
    "FedPAQ": "fedpaq",
    "FedProx": "fedprox",
    "GroupedAvg": "grouped",
    "GroupedAvgAsymmetric": "grouped",
    "Local": "local",
    "ProWD": "prowd.prowd",
}
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


def __getattr__(name: str) -> Any:
    """The names above, loaded when asked for: a device that runs one method waits for no other."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
