"""FedProx. Li et al., MLSys 2020, https://arxiv.org/abs/1812.06127."""

from typing import Literal

from bhfl.checks import checked, choice, not_negative, within
from bhfl.engine.algorithm import Algorithm, Context, LocalRun, add_to_gradient_


class FedProx(Algorithm):
    """FedAvg with a proximal term: each client minimises ``F_i(w) + mu/2 * ||w - w_received||^2``.

    Stragglers are drawn anew in each round, from streams of their own, so that methods can be
    compared on the same ones; a straggler makes a uniform number of the planned steps. FedProx
    keeps its partial work; the comparison with FedAvg in the paper drops it (``mu: 0, stragglers:
    drop``).

    Args:
        mu: Weight of the term; 0 is FedAvg to the bit. The paper tunes it over {0.001, 0.01, 0.1,
            1}.
        straggler_fraction: Probability that a client is a straggler in a round, in [0, 1].
        stragglers: ``keep`` their partial work, or ``drop`` them.

    Raises:
        ValueError: An argument is out of its range; in `setup`, the trainer has stragglers too.
    """

    def __init__(
        self,
        mu: float = 0.01,
        straggler_fraction: float = 0.0,
        stragglers: Literal["keep", "drop"] = "keep",
    ) -> None:
        self.mu = checked("FedProx.mu", mu, not_negative)
        self.descends = mu > 0
        self.straggler_fraction = checked(
            "FedProx.straggler_fraction", straggler_fraction, within("[0, 1]")
        )
        self.stragglers = checked("FedProx.stragglers", stragglers, choice("keep", "drop"))

    def setup(self, context: Context) -> None:
        """One source of stragglers."""
        availability = context.settings.fleet.availability
        if self.straggler_fraction and availability and availability.has_stragglers:
            raise ValueError(
                "FedProx.straggler_fraction must be 0 where trainer.availability has stragglers, "
                f"got {self.straggler_fraction}"
            )

    def num_steps(self, run: LocalRun, planned: int) -> int:
        """All planned steps, a straggler's part of them, or none."""
        # the first draw decides who is a straggler, so that keep and drop meet the same ones
        draw = run.rng.numpy("straggler")
        if draw.random() >= self.straggler_fraction:
            return planned
        return 0 if self.stragglers == "drop" else int(draw.integers(1, planned + 1))

    def client_gradients_(self, run: LocalRun) -> None:
        """``grad += mu * (w - w_received)``."""
        # not even a zero may be added where FedAvg's bits are promised: -0.0 + 0.0 is 0.0
        if self.mu:
            for _, parameter, received in run.parameters():
                add_to_gradient_(parameter, parameter.detach() - received, self.mu)
