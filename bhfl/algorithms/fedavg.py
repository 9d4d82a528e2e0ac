"""FedAvg. McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629."""

from bhfl.engine.fedavg import FedAvg

__all__ = ["FedAvg"]
