"""Ditto. Li et al., ICML 2021, https://arxiv.org/abs/2012.04221."""

from bhfl.checks import checked, not_negative
from bhfl.engine.algorithm import Algorithm, LocalRun, add_to_gradient_


class Ditto(Algorithm):
    """FedAvg, beside which each client trains a model of its own, pulled towards the global one:
    it minimises ``F_i(v) + lam/2 * ||v - w_t||^2``.

    The global model is FedAvg's to the bit. A client's own model begins as the first global model
    that it receives, stays on the client, makes as many steps in a round as the global one, on the
    same batches, and is what is measured of the client. One that has lost it begins it anew, from
    the global model of that round: nothing of the server's is made of it.

    Args:
        lam: Weight of the term: 0 for models that learn alone, more for models that are like the
            global one. The paper takes the best of {0.05, 0.1, 0.2} or of {0.1, 1, 2}.

    Raises:
        ValueError: `lam` is negative.
    """

    descends = True
    own_model = True
    begins_anew = True

    def __init__(self, lam: float = 0.1) -> None:
        self.lam = checked("Ditto.lam", lam, not_negative)

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad += lam * (v - w_t)`` of the client's own model."""
        if run.own is not None:
            for _, parameter, received in run.parameters():
                add_to_gradient_(parameter, parameter.detach() - received, self.lam)
