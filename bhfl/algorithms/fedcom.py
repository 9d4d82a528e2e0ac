"""FedCOM. Haddadpour et al., AISTATS 2021, https://arxiv.org/abs/2007.01154."""

from bhfl.algorithms.differences import DifferenceAlgorithm, Norm
from bhfl.checks import checked, positive


class FedCOM(DifferenceAlgorithm):
    """FedPAQ with a server step: ``w_{t+1} = w_t - gamma * mean_i Q(w_t - w_i)``.

    The paper divides differences by the client's learning rate before quantising and multiplies
    after; the quantiser is positively homogeneous, so the two cancel.

    Args:
        bits: Bits of a quantised difference; 32 sends float32.
        server_lr: ``gamma``; 1 is FedPAQ to the bit.
        norm: What scales a bucket: its largest magnitude (``linf``) or its length (``l2``).
        bucket_size: Entries that share a norm; null for one bucket a tensor.
        error_feedback: Whether a client adds to its differences what rounding, to the nearest
            codes, and `top_k` left out of its last ones; with `linf`.
        top_k: The share of a tensor's entries that are sent, those of the largest magnitudes, each
            with its place; null for all.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        bits: int = 8,
        server_lr: float = 1.0,
        norm: Norm = "linf",
        bucket_size: int | None = None,
        error_feedback: bool = False,
        top_k: float | None = None,
    ) -> None:
        super().__init__(bits, norm, bucket_size, error_feedback, top_k)
        self.server_lr = checked("FedCOM.server_lr", server_lr, positive)
