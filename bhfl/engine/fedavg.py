"""FedAvg, which a trainer runs where it is told of no other algorithm."""

from bhfl.engine.algorithm import Algorithm


class FedAvg(Algorithm):
    """Mean of the clients' weights, weighted by their numbers of samples.

    With clients of several bit-widths this is the naive baseline: low-bit weights are dequantised
    linearly and averaged into the float32 ones. Every hook is the engine's default.
    """

    # where users import it from, by which configurations and settings of runs know it
    __module__ = "bhfl.algorithms"
