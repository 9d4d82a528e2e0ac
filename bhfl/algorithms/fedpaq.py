"""FedPAQ. Reisizadeh et al., AISTATS 2020, https://arxiv.org/abs/1909.13014."""

from bhfl.algorithms.differences import DifferenceAlgorithm


class FedPAQ(DifferenceAlgorithm):
    """Periodic averaging with quantised differences: ``w_{t+1} = w_t - mean_i Q(w_t - w_i)``.

    The paper's quantiser takes the l2 norm of the whole vector, which drowns deep networks in noise
    even at 8 bits (relative variance 5.3 for a million entries); the largest magnitude of each
    tensor is the default here.

    Args:
        bits: Bits of a quantised difference; 32 sends float32 and is FedAvg to the bit.
        norm: What scales a bucket: its largest magnitude (``linf``) or its length (``l2``).
        bucket_size: Entries that share a norm; null for one bucket a tensor.
        error_feedback: Whether a client adds to its differences what rounding, to the nearest
            codes, and `top_k` left out of its last ones; with `linf`.
        top_k: The share of a tensor's entries that are sent, those of the largest magnitudes, each
            with its place; null for all.

    Raises:
        ValueError: An argument is out of its range.
    """
