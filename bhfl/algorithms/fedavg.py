"""FedAvg. McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629."""

from bhfl.engine.algorithm import Algorithm


class FedAvg(Algorithm):
    """Mean of the clients' weights, weighted by their numbers of samples.

    With clients of several bit-widths this is the naive baseline: low-bit weights are dequantised
    linearly and averaged into the float32 ones. Every hook is the engine's default.
    """
